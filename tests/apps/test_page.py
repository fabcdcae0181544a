"""The page that works without Python: it is held equal to Python, and drawn on in Chromium."""

import base64
import contextlib
import os

import numpy as np
import pytest
import torch
from conftest import slow

from apps import page as apps_page
from inference import MNISTPredictor
from model import MNISTClassifier, normalize
from reading.checkpoint import load_checkpoint, save_checkpoint
from reading.preprocessing import draw_as_mnist
from training.data import PROJECT_DIR, load_mnist, load_sample
from training.forms import FORMS
from training.plots import occlude
from training.synthetic import vary

with contextlib.suppress(ImportError):  # the fixture `browser` says what is missing
    from browser import STROKES, answer, draw

pytestmark = slow
PICTURES = PROJECT_DIR / "outputs" / "browser"  # to be looked at
BLANK = ["?", "draw", "a", "digit"]
WIDTH, HEIGHT = 1120, 560  # of the canvas
DRAWINGS = 400 if "SLOW" in os.environ else len(FORMS["digit"])
# Draws on the page's canvas, a list of strokes a drawing, and returns for each what the page says,
# the ink on its canvas, and the pixels of the image that the network saw, in base64.
REPLAY = """async (drawings) => {
    const canvas = document.querySelector(".digit-canvas canvas");
    canvas.setPointerCapture = () => {};  // these are the pointers of no device
    const area = canvas.getBoundingClientRect();
    const event = (kind, [x, y], coalescedEvents = []) => new PointerEvent(kind, {
        pointerId: 1, button: 0, coalescedEvents,
        clientX: area.left + x * area.width / 1120, clientY: area.top + y * area.width / 1120,
    });
    const encode = (bytes) => btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join(""));
    const results = [];
    for (const strokes of drawings) {
        document.querySelector(".clear").click();
        for (const points of strokes) {
            const moves = points.slice(1).map((point) => event("pointermove", point));
            canvas.dispatchEvent(event("pointerdown", points[0]));
            canvas.dispatchEvent(event("pointermove", points.at(-1), moves));
            canvas.dispatchEvent(event("lostpointercapture", points.at(-1)));
        }
        const image = document.querySelector(".seen img");
        await image.decode();
        const small = new OffscreenCanvas(28, 28).getContext("2d");
        small.drawImage(image, 0, 0);
        const red = (context, x, y, width, height) =>
            encode(context.getImageData(x, y, width, height).data.filter((_, i) => i % 4 === 0));
        // Around the points is all the ink, and the pen is 28 pixels wide.
        const [xs, ys] = [0, 1].map((i) => strokes.flat().map((point) => Math.round(point[i])));
        const [left, top] = [Math.min(...xs) - 20, Math.min(...ys) - 20];
        const [width, height] = [Math.max(...xs) - left + 20, Math.max(...ys) - top + 20];
        results.push({
            said: document.querySelector(".said b").textContent,
            ink: red(canvas.getContext("2d"), left, top, width, height),
            shape: [height, width],
            seen: red(small, 0, 0, 28, 28),
        });
    }
    return results;
}"""
FORWARD = """(batch) => {
    const network = decodeWeights(document.querySelector("#weights").textContent);
    const bytes = Uint8Array.from(atob(batch), (byte) => byte.charCodeAt());
    const answers = [];
    for (let start = 0; start < bytes.length; start += 784) {
        const pixels = Float32Array.from(bytes.subarray(start, start + 784), (byte) => byte / 255);
        answers.push(forward(network, pixels).probabilities);
    }
    return answers;
}"""
OCCLUDE = """(batch) => {
    const network = decodeWeights(document.querySelector("#weights").textContent);
    const bytes = Uint8Array.from(atob(batch), (byte) => byte.charCodeAt());
    const work = occlude(network, Float32Array.from(bytes, (byte) => byte / 255));
    let step;
    do step = work.next(); while (!step.done);
    return step.value.map((values) => [...values]);
}"""


@pytest.fixture
def open_page(browser):
    """Opens the page; no error may occur in it, and no request leave it."""
    errors, requests, contexts = [], [], []

    def open_page(width=1400, height=1000, path=apps_page.PAGE, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: errors.append(message.text))  # the policy's too
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [apps_page.PAGE.as_uri()]


@pytest.fixture(scope="module")
def rounded():
    """The network that ships, with its weights rounded as the page holds them."""
    model, _ = load_checkpoint(apps_page.SHIPPED_WEIGHTS)
    model.load_state_dict({name: w.half().float() for name, w in model.state_dict().items()})
    return model


def encode(images):
    return base64.b64encode(images.numpy().tobytes()).decode()


def decode(text, *shape):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


def take_picture(page, name):
    page.locator(".why:not(.waiting)").wait_for()
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"draw-{name}.png", full_page=True)


# ---- The file ----------------------------------------------------------------------------


def test_the_page_is_what_its_command_writes(tmp_path, capsys):
    out = tmp_path / "draw.html"
    assert apps_page.main(["--output", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: written\n"
    written = out.read_text(encoding="utf-8")
    remedy = "docs/draw.html is not what its sources make: run python -m apps.page"
    assert written == apps_page.PAGE.read_text(encoding="utf-8"), remedy
    assert "Of 10,000 test digits they read 99.60% correctly" in written
    assert len(written) < 1_250_000


def test_a_page_with_other_weights_says_what_they_are(tmp_path):
    path, model = tmp_path / "other.pt", MNISTClassifier()
    result = {"train_loss": 2.0, "test_loss": 1.0, "test_accuracy": 0.25, "misses": 750}
    history = {"command": "<script>alert(1)</script>", "data": "my digits", "test_digits": 1000}
    save_checkpoint(path, model, history | {"rows": [result]})
    written = apps_page.build_page(path)
    assert "what &lt;script&gt;alert(1)&lt;/script&gt; gave on my digits." in written
    assert "Of 1,000 test digits they read 25.00% correctly and 750 wrongly." in written
    torch.save(model.state_dict(), path)  # weights, and nothing else
    assert "does not say how these weights were trained" in apps_page.build_page(path)


def test_an_error_is_one_line_and_leaves_no_page(tmp_path, capsys):
    huge, model = tmp_path / "huge.pt", MNISTClassifier()
    model.fc2.bias.data[0] = 1e6  # float16 ends at 65,504
    save_checkpoint(huge, model, {})
    for path in (huge, tmp_path / "missing.pt"):
        out = tmp_path / "out.html"
        assert apps_page.main(["--checkpoint", str(path), "--output", str(out)]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"python -m apps.page: error: {path}: ") and err.count("\n") == 1
        assert not out.exists()


# ---- Equal to Python ---------------------------------------------------------------------


def check_digits(page, digits, rounded):
    """The page's digit is Python's for each image, and its probabilities are to 1e-4."""
    ours = torch.tensor(
        [
            answer
            for images in digits.images.split(1000)
            for answer in page.evaluate(FORWARD, encode(images))
        ]
    )
    predictor = MNISTPredictor()
    predictions = predictor.classify(normalize(digits.images))
    assert ours.argmax(dim=1).tolist() == [prediction.digit for prediction in predictions]
    with torch.inference_mode():
        theirs = rounded(normalize(digits.images[:1000])).softmax(dim=1)
    assert (ours[:1000] - theirs).abs().max() < 1e-4


def test_the_bundled_test_digits_are_read_as_python_reads_them(open_page, rounded):
    check_digits(open_page(), load_sample(train=False), rounded)


def test_all_test_digits_are_read_as_python_reads_them(open_page, rounded, mnist_dir):
    check_digits(open_page(), load_mnist(mnist_dir, train=False), rounded)


def test_drawings_become_the_pixels_that_python_makes_of_their_ink(open_page):
    """Styles of handwriting, small to large, so thick to thin strokes, all over the canvas."""
    rng = np.random.Generator(np.random.PCG64(22))
    drawings = []
    for i in range(DRAWINGS):
        strokes = vary(FORMS["digit"][i % len(FORMS["digit"])].write(rng), rng)
        points = np.concatenate(strokes)
        low, extent = points.min(axis=0), np.ptp(points, axis=0).max()
        size = rng.uniform(60, 480)
        corner = rng.uniform(20, [WIDTH - size - 20, HEIGHT - size - 20])
        drawings.append([((s - low) / extent * size + corner).tolist() for s in strokes])
    page, predictor = open_page(), MNISTPredictor()
    singles, same, off = 0, 0, []
    for start in range(0, DRAWINGS, 25):
        for answer in page.evaluate(REPLAY, drawings[start : start + 25]):
            if len(answer["said"]) != 1 or answer["said"] == "?":
                continue  # the strokes of an open digit, far apart, may be read as two
            singles += 1
            ink = (255 - decode(answer["ink"], *answer["shape"])).astype(np.float32) / 255
            rows, columns = (np.flatnonzero((ink > 0.3).any(axis=axis)) for axis in (1, 0))
            box = [slice(max(0, side[0] - 1), side[-1] + 2) for side in (rows, columns)]
            pixels = draw_as_mnist(ink[tuple(box)], small=False)
            off.append(np.abs(decode(answer["seen"], 28, 28) - 255 * pixels).max())
            seen = normalize(torch.from_numpy(255 * pixels).unsqueeze(0))
            same += int(answer["said"]) == predictor.classify(seen)[0].digit
    print(f"{singles} of {DRAWINGS} single digits, {same} as Python, to {max(off):.2f} of 255")
    assert singles > 0.95 * DRAWINGS
    assert np.mean(np.array(off) <= 2) > 0.995  # of one with a dot, other ink may be meant
    assert same >= 0.998 * singles


def test_the_pixels_that_spoke_are_those_that_python_names(open_page, rounded):
    page, digits = open_page(), load_sample(train=False)
    for image in digits.images[[3, 450]]:
        ours = torch.tensor(page.evaluate(OCCLUDE, encode(image))).view(10, 28, 28)
        theirs = occlude(rounded, image)
        assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


# ---- Drawn on ----------------------------------------------------------------------------


def pixels_of(page, selector):
    return page.locator(selector).evaluate("(canvas) => canvas.toDataURL()")


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "finger"])
def test_digits_are_read_as_they_are_drawn(open_page, width, touch):
    scheme = "dark" if touch else "light"
    page = open_page(width, 800, has_touch=touch, is_mobile=width == 360, color_scheme=scheme)
    assert answer(page).split() == BLANK
    blank = {name: pixels_of(page, name) for name in (".maps1", ".maps2", ".units", ".why canvas")}
    draw(page, STROKES[4], touch=touch, across=0.3)
    assert answer(page).split()[::2] == ["4", "sure"]
    assert page.locator(".row.best").inner_text().split()[0] == "4"
    assert page.get_by_role("status").inner_text().split()[0] == "4"  # a screen reader's
    for name, before in blank.items():
        assert pixels_of(page, name) != before

    draw(page, STROKES[7], touch=touch, across=0.75)
    assert answer(page) == "47"
    assert page.locator(".boxes b").all_inner_texts() == ["4", "7"]
    assert page.locator(".row.best").inner_text().split()[0] == "7"
    page.get_by_role("button", name="4", exact=True).first.click()  # look into the 4
    assert page.locator(".row.best").inner_text().split()[0] == "4"
    if (width == 360) == touch:
        take_picture(page, f"{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") == width

    page.locator(".undo").click()
    assert answer(page).split()[::2] == ["4", "sure"]
    page.locator(".clear").click()
    assert answer(page).split() == BLANK
    assert pixels_of(page, ".maps1") == blank[".maps1"]
    draw(page, STROKES[3], touch=touch)
    assert answer(page).split()[0] == "3"


def test_it_answers_before_the_pen_is_lifted_and_says_so_after(open_page):
    page = open_page()
    box = page.locator(".digit-canvas canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 30
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 200, steps=10)
    assert answer(page).split()[0] == "1"
    assert page.get_by_role("status").inner_text().split() == BLANK  # not at each move
    page.mouse.up()
    assert page.get_by_role("status").inner_text().split()[0] == "1"


def test_the_keyboard_draws(open_page):
    page = open_page()
    page.locator(".digit-canvas canvas").focus()
    for key, times in [("ArrowUp", 14), (" ", 1), ("ArrowDown", 28)]:
        for _ in range(times):
            page.keyboard.press(key)
    assert answer(page).split()[0] == "1"
    page.keyboard.press(" ")
    assert page.get_by_role("status").inner_text().split()[0] == "1"
    page.keyboard.press("Control+z")
    assert answer(page).split() == BLANK


def test_which_ink_spoke_is_shown_for_the_digit_under_the_pointer(open_page):
    page = open_page()
    draw(page, STROKES[4])
    page.locator(".why:not(.waiting)").wait_for()
    pressed = page.locator(".ten [aria-pressed=true]")
    assert pressed.inner_text() == "4"
    spoke = pixels_of(page, ".why canvas")
    page.locator(".row[data-digit='9']").hover()
    assert pressed.inner_text() == "9"
    assert pixels_of(page, ".why canvas") != spoke
    page.locator(".ten [data-digit='4']").click()
    assert pixels_of(page, ".why canvas") == spoke


def test_digits_in_lines_are_read_line_by_line(open_page):
    places = [(4, 100, 20), (7, 400, 30), (0, 200, 320), (3, 500, 300)]
    drawing = [
        [(left + 230 * x, top + 230 * y) for x, y in points]
        for digit, left, top in places
        for points in STROKES[digit]
    ]
    [result] = open_page().evaluate(REPLAY, [drawing])
    assert result["said"] == "47 03"


def test_what_is_no_digit_is_doubted(open_page):
    page = open_page()
    draw(page, [[(0.2, 0.2), (0.8, 0.8)], [(0.2, 0.8), (0.8, 0.2)], [(0.1, 0.5), (0.9, 0.5)]])
    assert "perhaps" in answer(page)
