"""The canvas as a page: it is drawn on in Chromium, and asked what it must refuse."""

import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import slow
from PIL import Image

from apps import canvas
from inference import MNISTPredictor
from training.data import PROJECT_DIR, load_sample

with contextlib.suppress(ImportError):  # the fixture `browser` says what is missing
    import drawings
    from browser import STROKES, answer, draw

PICTURES = PROJECT_DIR / "outputs" / "browser"  # to be looked at
BLANK = ["?", "draw", "a", "digit"]


@contextlib.contextmanager
def serve(scratch):
    """Run `python -m apps.canvas` where there is no anywidget; yields the process and its port.

    The browser that it opens is the shell, which notes the address.
    """
    for name in ("anywidget", "traitlets"):
        (scratch / f"{name}.py").write_text(f"raise ImportError('no {name}')\n")
    variables = {"PYTHONPATH": str(scratch), "BROWSER": f"sh -c 'echo %s >{scratch}/opened'"}
    # A process that is started in the background ignores SIGINT, and so would its children.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    server = subprocess.Popen(
        [sys.executable, "-m", "apps.canvas"],
        cwd=PROJECT_DIR,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, handler)
    try:
        said = server.stdout.readline()
        assert said.startswith("Draw at http://127.0.0.1:"), server.communicate()
        yield server, int(said.split(":")[2].split("/")[0])
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("page")) as (_, port):
        yield port


def ask(port, method, path, body=b"", **headers):
    """Return the status, the headers and the content of an answer; a header may be None."""
    headers = {"Host": f"127.0.0.1:{port}", "Content_Length": str(len(body))} | headers
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers.items():
        if value is not None:
            connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    with contextlib.closing(connection), connection.getresponse() as response:
        return response.status, response.headers, response.read()


def png(size, mode="L", colour=255, format="png"):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_page_is_served_with_a_strict_policy(port, name):
    status, headers, content = ask(port, "GET", "/", Host=f"{name}:{port}")
    assert status == 200
    assert b"<canvas" in content
    assert b"http" not in content  # it needs nothing else
    [script] = re.findall(rb'<script type="module">(.*?)</script>', content, re.DOTALL)
    script_hash = base64.b64encode(hashlib.sha256(script).digest()).decode()
    policy = headers["Content-Security-Policy"]
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{script_hash}'; ")


@pytest.mark.parametrize("path", ["/apps/canvas.js", "/../README.md", "/?", "//", "/read"])
def test_nothing_else_is_served(port, path):
    status, _, content = ask(port, "GET", path)
    assert status == (200 if path == "//" else 404)  # http.server takes // for /
    assert (b"MNIST" in content) == (path == "//")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": None},
        {"Host": "127.0.0.1"},  # another port
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
    ],
)
def test_other_hosts_and_other_origins_are_refused(port, headers):
    if headers.get("Host"):
        headers = headers | {"Host": headers["Host"].replace("example", f"example:{port}")}
    assert ask(port, "GET", "/", **headers)[0] == 403
    assert ask(port, "POST", "/read", Content_Type="image/png", **headers)[0] == 403


@pytest.mark.parametrize(
    "status, headers",
    [
        (415, {"Content_Type": "application/x-www-form-urlencoded"}),
        (415, {"Content_Type": None}),
        (411, {"Content_Length": None}),
        (411, {"Content_Length": "-1"}),
        (413, {"Content_Length": "2000001"}),
        (413, {"Content_Length": "9" * 5000}),
    ],
)
def test_a_drawing_must_say_that_it_is_a_png_and_how_long(port, status, headers):
    """And is not waited for otherwise."""
    assert ask(port, "POST", "/read", **{"Content_Type": "image/png"} | headers)[0] == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no image",
        png((1120, 560))[:-200],
        png((1120, 560), format="jpeg"),
        png((30_000, 30_000), "1", 1),  # a decompression bomb
    ],
    ids=["empty", "text", "cut off", "jpeg", "bomb"],
)
def test_what_is_no_png_is_refused(port, body):
    assert len(body) < 2_000_000
    assert ask(port, "POST", "/read", body, Content_Type="image/png")[0] == 400


def test_a_blank_drawing_has_no_lines(port):
    origin = f"http://127.0.0.1:{port}"
    status, headers, content = ask(
        port, "POST", "/read", png((1120, 560)), Content_Type="image/png", Origin=origin
    )
    assert (status, headers["Content-Type"], json.loads(content)) == (200, "application/json", {})


def test_a_client_that_stalls_keeps_nobody_waiting_and_is_left(monkeypatch):
    monkeypatch.setattr(canvas.PageHandler, "timeout", 0.5)
    with canvas.CanvasServer(MNISTPredictor()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        with socket.create_connection(("127.0.0.1", port), timeout=60) as stalled:
            stalled.sendall(b"POST /read HTTP/1.1\r\n")
            assert ask(port, "GET", "/")[0] == 200
            assert stalled.recv(1) == b""
        server.shutdown()


def test_it_opens_the_browser_and_ctrl_c_ends_it(tmp_path):
    with serve(tmp_path) as (server, port):
        assert ask(port, "GET", "/")[0] == 200
        with socket.create_connection(("127.0.0.1", port)):  # a browser keeps some open
            server.send_signal(signal.SIGINT)
            assert server.communicate(timeout=60) == ("", "")
        assert server.returncode == 0
        assert Path(tmp_path / "opened").read_text() == f"http://127.0.0.1:{port}/\n"


def test_an_error_is_one_line_that_names_the_command(monkeypatch, capsys):
    monkeypatch.setattr(canvas, "MNISTPredictor", lambda: MNISTPredictor("missing.pt"))
    assert canvas.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("python -m apps.canvas: error: missing.pt: ") and err.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        canvas.main(["--port"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("python -m apps.canvas: error: ") and err.count("\n") == 1


def test_without_anywidget_the_notebook_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "apps.canvas")
    with pytest.raises(ImportError, match="needs anywidget: pip install anywidget"):
        from apps.canvas import DigitCanvas  # noqa: F401


def test_the_widget_reads_the_drawing_that_its_trait_holds():
    pytest.importorskip("anywidget")
    digit = Image.fromarray(255 - load_sample(False).images[7].numpy()).resize((560, 560))
    drawing = Image.new("L", (1120, 560), 255)
    drawing.paste(digit, (280, 0))
    buffer = io.BytesIO()
    drawing.save(buffer, "png")
    predictor = MNISTPredictor()
    widget = canvas.DigitCanvas(predictor)
    state = widget.get_state()
    assert "export default { render }" in state["_esm"] and ".digit-canvas" in state["_css"]
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    widget.drawing = {"id": "7", "png": url}
    [[found]] = widget.answer["lines"]
    assert widget.answer["id"] == "7"
    expected = predictor.read(drawing)[0][0]
    assert found["digit"] == expected.digit
    assert found["box"] == pytest.approx(expected.box, abs=4)  # a margin is read along
    seen = Image.open(io.BytesIO(base64.b64decode(widget.answer["seen"].partition(",")[2])))
    assert seen.size == (28, 28)
    empty = base64.b64encode(png((1120, 560))).decode()
    widget.drawing = {"id": "8", "png": f"data:image/png;base64,{empty}"}
    assert widget.answer == {"id": "8"}


@pytest.fixture
def page(browser, port):
    """The page in a browser, in which nothing may go wrong."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    errors = []
    page.on("console", lambda message: errors.append(message.text))  # the policy's too
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"http://127.0.0.1:{port}/")
    yield page
    page.close()
    assert errors == []


def draw_number(page):
    for digit, across in [(4, 0.2), (0, 0.5), (7, 0.8)]:
        draw(page, STROKES[digit], across=across)


def labels(page):
    return page.locator(".boxes b").all_inner_texts()


def take_picture(page, name):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"page-{name}.png", full_page=True)


def test_a_number_drawn_with_the_mouse_is_read_and_its_digits_boxed(page):
    assert answer(page).split() == BLANK
    draw_number(page)
    assert answer(page).split() == ["407"]
    assert labels(page) == ["4", "0", "7"]
    area = page.locator("canvas").bounding_box()
    for box, across in zip(page.locator(".boxes span").all(), (0.2, 0.5, 0.8), strict=True):
        box = box.bounding_box()
        middle = (box["x"] + box["width"] / 2 - area["x"]) / area["width"]
        assert abs(middle - across) < 0.02
        assert 0.5 < box["height"] / area["height"] < 0.8
    rows = [row.split() for row in page.locator(".row").all_inner_texts()]
    assert [digit for digit, _ in rows] == ["4", "0", "7"]  # and how sure it is of each
    assert not page.locator("img").is_visible()
    take_picture(page, "number")


def test_undo_takes_back_a_stroke_and_clear_all(page):
    draw_number(page)
    assert answer(page).split() == ["407"]
    page.locator(".undo").click()
    assert answer(page).split() == ["40"]
    assert labels(page) == ["4", "0"]
    page.locator(".clear").click()
    assert answer(page).split() == BLANK
    assert labels(page) == []


def test_a_single_digit_has_ten_bars_and_what_the_network_saw(page):
    draw(page, STROKES[4], across=0.3)
    assert answer(page).split()[::2] == ["4", "sure"]
    assert labels(page) == ["4"]
    assert page.locator(".row").count() == 10
    assert page.locator(".row.best").inner_text().split()[0] == "4"
    assert page.locator("img").evaluate("(image) => image.decode().then(() => image.width)") > 0
    take_picture(page, "digit")


def test_ink_in_which_no_digit_is_found_is_no_digit(page):
    page.route("**/read", lambda route: route.fulfill(json={"lines": []}))
    draw(page, STROKES[4])
    assert answer(page).split() == ["?", "no", "digit"]


def test_it_fits_a_phone_and_a_dark_screen(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    draw_number(page)
    assert answer(page).split() == ["407"]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    take_picture(page, "phone")


def test_an_answer_that_does_not_come_is_explained(page):
    page.route("**/read", lambda route: None)
    draw(page, STROKES[4])
    page.get_by_text("No answer. Python is busy, or has ended").wait_for()


# ---- What people draw --------------------------------------------------------------------


def drawn(page, strokes, size, beside):
    """Draw strokes, alone or between two digits; return the numbers that the canvas reads."""
    page.locator(".clear").click()
    if beside:
        drawings.draw_between(page, strokes, size)
    else:
        drawings.draw_high(page, strokes, size)
    answer(page)
    return page.locator(".said b").inner_text().replace("?", "")


@pytest.mark.parametrize(("size", "beside"), [(0.8, False), (0.35, True)], ids=["alone", "small"])
@slow
def test_digits_in_many_hands(page, size, beside):
    """But for a 1 whose upstroke is 40% of its height: alone, it may be a Λ."""
    left, right = drawings.NEIGHBOURS if beside else ("", "")
    wrong = []
    for digit, name, strokes in drawings.DIGITS[:: 1 + beside]:  # neighbours take long
        said = drawn(page, strokes, size, beside)
        if said != f"{left}{digit}{right}":
            wrong.append(f"{digit} {name}: {said or 'no digit'}")
    assert len(wrong) <= 1, wrong


@slow
def test_signs_alone_are_no_digits(page):
    """But for a comma, which is a small 1 where nothing tells its size, and a large ×."""
    wrong = []
    for name, strokes in [*drawings.SIGNS, ("face", drawings.FACE)]:
        if said := drawn(page, strokes, 0.8, False):
            wrong.append(f"{name}: {said}")
    assert len(wrong) <= 2, wrong


@slow
def test_signs_beside_digits_are_no_digits(page):
    """Half of them so far: slashes and brackets are read as 1s."""
    left, right = drawings.NEIGHBOURS
    wrong = []
    for name, strokes in [*drawings.SIGNS, *drawings.BESIDE_DIGITS, ("face", drawings.FACE)]:
        said = drawn(page, strokes, 0.8, True)
        if said.replace(" ", "") != f"{left}{right}":
            wrong.append(f"{name}: {said or 'no digit'}")
    assert len(wrong) <= 6, wrong
