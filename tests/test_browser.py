"""The notebook in a real browser: run from top to bottom, and its canvas drawn on."""

import pytest
from conftest import slow, unavailable

try:
    from browser import CHROMIUM, STROKES, answer, draw, run_notebook
    from make_notebook import PROJECT_DIR
except ImportError as error:
    unavailable(f"needs requirements-dev.txt: {error}")
if not CHROMIUM:
    unavailable("needs Chromium: apt-get install chromium")

PICTURES = PROJECT_DIR / "outputs" / "browser"  # to be looked at


@pytest.fixture(scope="module", params=["lab", pytest.param("notebook", marks=slow)])
def page(request, tmp_path_factory):
    """The notebook of a clone, after all its cells were run."""
    with run_notebook(request.param, tmp_path_factory.mktemp("jupyter")) as page:
        page.app = request.param
        yield page


@pytest.fixture(autouse=True)
def blank_canvas(page):
    page.locator(".digit-canvas .clear").click()


def said(page):
    return answer(page).split()[0]


def test_no_cell_fails(page):
    """The last cell ran: no cell before it failed, or it would not have been reached."""
    page.get_by_text("There is no test.csv of the Digit Recognizer here.").first.wait_for()


@pytest.mark.parametrize("digit", STROKES)
def test_a_digit_drawn_with_the_mouse_is_read(page, digit):
    draw(page, STROKES[digit])
    assert said(page) == str(digit)
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.locator(".digit-canvas").screenshot(path=PICTURES / f"{page.app}-{digit}.png")


def test_a_digit_drawn_with_a_finger_is_read(page):
    scrolled = page.locator(".digit-canvas").bounding_box()
    draw(page, STROKES[3], touch=True)
    assert said(page) == "3"
    assert page.locator(".digit-canvas").bounding_box() == scrolled  # the page stayed where it was


def test_a_whole_number_is_read_and_its_digits_boxed(page):
    draw(page, STROKES[4], across=0.25)
    draw(page, STROKES[7], across=0.75)
    assert said(page) == "47"
    assert page.locator(".digit-canvas .boxes b").all_inner_texts() == ["4", "7"]
    page.locator(".digit-canvas").screenshot(path=PICTURES / f"{page.app}-47.png")


def test_the_answer_has_ten_bars_and_the_image_that_the_network_saw(page):
    draw(page, STROKES[7])
    assert said(page) == "7"
    percents = page.locator(".digit-canvas .percent").all_inner_texts()
    assert len(percents) == 10
    assert abs(sum(float(percent.rstrip("%")) for percent in percents) - 100) < 1
    assert page.locator(".digit-canvas .row.best").inner_text().split() == ["7", percents[7]]
    assert page.evaluate(
        "() => {const image = document.querySelector('.digit-canvas img');"
        "return [image.checkVisibility(), image.naturalWidth, image.naturalHeight]}"
    ) == [True, 28, 28]


def test_a_blank_canvas_asks_for_a_digit(page):
    assert answer(page).split() == ["?", "draw", "a", "digit"]
    assert page.locator(".digit-canvas .percent").all_inner_texts() == [""] * 10


def test_clear_empties_the_canvas(page):
    draw(page, STROKES[3])
    assert said(page) == "3"
    page.locator(".digit-canvas .clear").click()
    assert answer(page).split() == ["?", "draw", "a", "digit"]
    draw(page, STROKES[7])
    assert said(page) == "7"


def test_undo_takes_back_the_last_stroke(page):
    one, other = [[(0.5, 0.15), (0.5, 0.85)]], [[(0.2, 0.15), (0.8, 0.15), (0.5, 0.5)]]
    draw(page, one)
    before = answer(page)
    draw(page, other)
    assert answer(page) != before
    page.locator(".digit-canvas .undo").click()
    assert answer(page) == before
    page.keyboard.press("Control+z")
    assert answer(page).split() == ["?", "draw", "a", "digit"]


def test_the_keyboard_draws(page):
    """And JupyterLab's own keys, such as the arrows, leave the canvas alone."""
    page.locator(".digit-canvas canvas").focus()
    for key, times in [("ArrowUp", 14), (" ", 1), ("ArrowDown", 28), (" ", 1)]:
        for _ in range(times):
            page.keyboard.press(key)
    assert said(page) == "1"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # on the undo button
    assert answer(page).split() == ["?", "draw", "a", "digit"]


def test_a_stroke_may_leave_the_canvas(page):
    draw(page, [[(0.5, 0.1), (0.5, 0.9), (0.5, 1.2)]])
    assert said(page) == "1"


def test_an_uploaded_picture_is_explained(page, tmp_path):
    draw(page, STROKES[7])
    assert said(page) == "7"
    picture = tmp_path / "seven.png"
    page.locator(".digit-canvas canvas").screenshot(path=picture)
    button = page.get_by_role("button", name="Upload", exact=False).first
    for _ in range(20):  # Jupyter takes what is out of sight out of the page
        if button.is_visible():
            break
        page.mouse.wheel(0, -300)
        page.wait_for_timeout(200)
    answers = page.locator(".jp-OutputArea-child .jupyter-widgets .jp-RenderedImage img")
    assert answers.count() == 0
    with page.expect_file_chooser() as chooser:
        button.click()
    chooser.value.set_files(picture)
    answers.wait_for()
    PICTURES.mkdir(parents=True, exist_ok=True)
    answers.screenshot(path=PICTURES / f"{page.app}-upload.png")


def test_an_answer_that_comes_after_clear_is_dropped(page):
    draw(page, STROKES[3])
    page.locator(".digit-canvas .clear").click()  # before Python has answered
    page.wait_for_timeout(1500)
    assert answer(page).split() == ["?", "draw", "a", "digit"]
