"""MNISTPredictor.read: all the digits of a picture, in order, and no non-digits."""

import concurrent.futures
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.whole_numbers import made_pictures
from inference import FoundDigit, MNISTPredictor, Prediction, main, split_numbers
from reading import context
from reading.segmentation import Lattice, Page, Part, join, typical
from training.data import load_sample


@pytest.fixture(scope="module")
def digits() -> list[np.ndarray]:
    """A clear digit of each class, uint8 (28, 28)."""
    sample = load_sample(False)
    images, labels = sample.images.numpy(), sample.labels.numpy()
    sure = MNISTPredictor().predict_batch(list(images))
    order = sorted(range(len(labels)), key=lambda i: -sure[i].confidence)
    return [images[next(i for i in order if labels[i] == n)] for n in range(10)]


def write(digits, lines, size=28, gap=8, slope=0.0) -> Image.Image:
    """Write lines of digits, dark on white, each `size` pixels high, so far apart."""
    step, rows = size + gap, 2 * size
    width = step * max(map(len, lines)) + size
    page = np.zeros((rows * len(lines) + size + round(abs(slope) * width), width), np.uint8)
    for y, line in enumerate(lines):
        for x, digit in enumerate(line):
            if digit == " ":
                continue
            ink = Image.fromarray(digits[int(digit)]).resize((size, size), Image.BICUBIC)
            top = size // 2 + rows * y + round(slope * step * x + max(0, -slope) * width)
            place = page[top : top + size, size // 2 + step * x :][:, :size]
            np.maximum(place, np.asarray(ink), out=place)
    return Image.fromarray(255 - page)


def texts(lines: list[list[FoundDigit]]) -> list[str]:
    return ["".join(str(found.digit) for found in line) for line in lines]


# ---- Lines, digits and boxes --------------------------------------------------------------


@pytest.mark.parametrize(
    "lines, size",
    [
        (["7"], 20),
        (["0123456789"], 20),
        (["123", "4567", "89"], 20),
        (["1", "2", "3"], 60),
        (["12    90", "345"], 60),
    ],
)
def test_lines_from_top_to_bottom_and_digits_from_left_to_right(predictor, digits, lines, size):
    found = predictor.read(write(digits, lines, size))
    assert texts(found) == [line.replace(" ", "") for line in lines]


@pytest.mark.parametrize("slope", [-0.15, 0.15])
def test_slanting_lines(predictor, digits, slope):
    page = write(digits, ["3141592653"] * 3, 40, 10, slope)
    assert texts(predictor.read(page)) == ["3141592653"] * 3


def test_light_on_dark_is_read_alike(predictor, digits):
    page = Image.fromarray(255 - np.asarray(write(digits, ["60", "25"], 60)))
    assert texts(predictor.read(page)) == ["60", "25"]


def test_a_box_holds_its_digit_in_pixels_of_the_upright_original(predictor, digits):
    page = write(digits, ["258"], 700, 300)  # larger than what is worked on
    turned = page.transpose(Image.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn it by 90 degrees, clockwise"
    buffer = io.BytesIO()
    turned.save(buffer, "png", exif=exif)
    [line] = predictor.read(buffer.getvalue())
    assert texts([line]) == ["258"]
    pixels = np.asarray(page) < 128
    for number, found in enumerate(line):
        columns = slice(350 + 1000 * number, 350 + 1000 * number + 700)
        ink = np.zeros_like(pixels)
        ink[:, columns] = pixels[:, columns]
        rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
        box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        assert np.abs(np.subtract(found.box, box)).max() < 25  # of 700
        assert all(isinstance(side, int) for side in found.box)


def test_a_found_digit_has_what_a_prediction_has(predictor, digits):
    [[found]] = predictor.read(write(digits, ["5"], 60))
    assert found.digit == int(np.argmax(found.probabilities)) == 5
    assert found.confidence == max(found.probabilities)
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)


def test_digits_that_touch_are_separated(predictor, digits):
    numbers = ["20", "58", "93", "36", "85", "03", "62", "235"]
    right = 0
    for number in numbers:
        inks = [digits[int(digit)][:, digits[int(digit)].max(axis=0) > 100] for digit in number]
        ink = np.concatenate(inks, axis=1)
        page = Image.fromarray(255 - np.pad(ink, 14)).resize((6 * (ink.shape[1] + 28), 336))
        right += texts(predictor.read(page)) == [number]
    assert right >= len(numbers) - 2


def test_numbers_on_papers_of_many_kinds(predictor):
    sample = load_sample(False)
    pictures = list(made_pictures(1, sample.images.numpy(), sample.labels.numpy(), seed=3))
    right = sum("|".join(texts(predictor.read(p.image))) == p.answer for p in pictures)
    assert right >= len(pictures) // 2


def test_a_thousand_digits(predictor, digits):
    lines = [("0123456789" * 4)[i : i + 40] for i in range(25)]
    lines = [(line + "0123456789" * 4)[:40] for line in lines]
    found = texts(predictor.read(write(digits, lines, 28, 6)))
    assert len(found) == 25
    wrong = sum(a != b for f, line in zip(found, lines, strict=True) for a, b in zip(f, line))  # noqa: B905
    assert wrong + abs(len("".join(found)) - 1000) < 20


def test_a_doubtful_digit_counts_among_sure_ones_and_not_alone(digits, monkeypatch, tmp_path):
    predictor = MNISTPredictor()
    classify = predictor.classify

    def doubt_sevens(images):
        return [p._replace(confidence=0.7) if p.digit == 7 else p for p in classify(images)]

    monkeypatch.setattr(predictor, "classify", doubt_sevens)
    monkeypatch.setattr(context, "CONTEXT_WEIGHTS", tmp_path / "none")  # it may have no doubt
    assert texts(predictor.read(write(digits, ["1275"], 60))) == ["1275"]
    assert texts(predictor.read(write(digits, ["125", "7"], 60))) == ["125"]
    assert predictor.read(write(digits, ["7"], 60)) == []


def make_part(height=20, width=10, left=0, thickness=0.0, top=0):
    return Part(np.ones((height, width), bool), top, left, thickness)


def test_a_digit_is_unlikely_if_it_is_wide_low_or_cut_out_of_thick_ink_or_its_context_says_so(
    digits,
):
    page = Page(np.asarray(write(digits, ["5"], 60), np.float32) / 255, 1.0)
    page.likelihood = lambda part: 1.0  # all of it is ink

    def score(*parts, digit=5, logit=0.0):
        lattice = Lattice([make_part()], 20, page)
        lattice.parts, lattice.runs = list(parts), {(0, len(parts)): join(list(parts))}
        lattice.logits = {(0, len(parts)): logit}
        page.readings[lattice.runs[0, len(parts)]] = Prediction(digit, 0.9, ())
        return lattice.score(0, len(parts))

    likely = float(np.log(0.9))
    assert score(make_part(20, 10)) == score(make_part(20, 20)) == pytest.approx(likely)
    assert score(make_part(20, 30)) < likely
    assert score(make_part(12, 10, top=4), digit=1) < score(make_part(12, 10, top=4)) == likely
    assert score(make_part(), logit=-2.0) < likely < score(make_part(), logit=2.0)
    assert score(make_part(thickness=4)) < score(make_part(thickness=2)) < likely
    pieces = make_part(width=5), make_part(width=5, left=5, thickness=2)
    assert score(*pieces) == pytest.approx(likely)  # put together again
    assert score(make_part(width=5), make_part(width=5, left=6)) < likely


def test_joined_digits_count_more_for_the_height_than_a_sure_speck():
    joined, speck = (Part(np.ones(shape, bool), 0, 0) for shape in ((40, 100), (12, 3)))
    page = Page(np.zeros((50, 150), np.float32), 1.0)
    page.readings = {joined: Prediction(3, 0.3, ()), speck: Prediction(1, 1.0, ())}
    assert typical([joined, speck], [40, 12], page) == 40


def test_gaps_and_signs_part_numbers_and_points_do_not(predictor, digits):
    page = write(digits, ["0    50    26"], 40)
    [line] = predictor.read(page)
    assert split_numbers(line) == ["0", "50", "26"]
    page = write(digits, ["27 35"], 60, gap=0)
    middle = 30 + 60 * 2 + 30
    with_point, with_bar = page.copy(), page.copy()
    ImageDraw.Draw(with_point).ellipse((middle - 4, 84, middle + 4, 92), fill=0)
    ImageDraw.Draw(with_bar).line((middle - 14, 60, middle + 14, 60), fill=0, width=5)
    for image in (with_point, with_bar):
        assert texts(predictor.read(image)) == ["2735"]


def test_what_is_left_out_parts_two_numbers(digits, monkeypatch, tmp_path):
    predictor = MNISTPredictor()
    classify = predictor.classify

    def doubt_fours(images):  # and their halves
        return [p._replace(confidence=0.01) if p.digit in (4, 1) else p for p in classify(images)]

    monkeypatch.setattr(predictor, "classify", doubt_fours)
    monkeypatch.setattr(context, "CONTEXT_WEIGHTS", tmp_path / "none")  # it may have no doubt
    [line] = predictor.read(write(digits, ["23457"], 60))
    assert split_numbers(line) == ["23", "57"]


def test_commas_of_a_sloping_line_are_no_ones(predictor, digits):
    for slope in (-0.06, 0, 0.06):
        page = write(digits, ["2 35 7"], 60, 0, slope)
        for x in (120, 300):
            y = 66 + slope * x + max(0, -slope) * page.width
            ImageDraw.Draw(page).line((x, y, x - 6, y + 20), fill=0, width=5)
        assert texts(predictor.read(page)) == ["2357"], slope


def test_a_level_bar_is_never_cut_into_ones(predictor):
    for width in (6, 20):
        bar = Image.new("L", (400, 160), 255)
        ImageDraw.Draw(bar).line((60, 80, 340, 80), fill=0, width=width)
        assert predictor.read(bar) == []


def test_the_work_for_a_line_grows_as_its_parts_do(digits):
    page = Page(np.asarray(write(digits, ["5"], 60), np.float32) / 255, 1.0)

    def steps(n):
        """Count the lines of Python that are run for a line of n parts."""
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            count += 1
            return trace

        line = [make_part(left=20 * i) for i in range(n)]
        sys.settrace(trace)
        try:
            Lattice(line, 20, page)
        finally:
            sys.settrace(None)
        return count

    assert steps(400) < 5 * steps(100)


# ---- Non-digits ---------------------------------------------------------------------------


def scribble() -> Image.Image:
    image = Image.new("L", (300, 300), 255)
    points = np.random.default_rng(6).uniform(40, 260, (40, 2))
    ImageDraw.Draw(image).line([tuple(p) for p in points], fill=0, width=6)
    return image


def test_a_non_digit_gives_no_lines(predictor):
    assert predictor.read(scribble()) == []


def test_no_ink_is_refused(predictor):
    with pytest.raises(ValueError, match="blank"):
        predictor.read(Image.new("L", (300, 200), 255))


def test_the_threshold_is_that_of_the_checkpoint_or_that_asked_for(predictor):
    assert 0.5 < predictor.min_confidence < 0.95
    assert predictor.min_confidence == predictor.metadata["min_confidence"]
    assert MNISTPredictor(min_confidence=0).read(scribble())
    with pytest.raises(ValueError, match="min_confidence"):
        MNISTPredictor(min_confidence=1.5)


def test_hostile_pictures_end_in_answers_or_errors_that_are_promised(predictor):
    rng = np.random.default_rng(0)
    yes_no = 255 * rng.integers(0, 2, (600, 600)).astype(np.uint8)
    for pixels in (
        yes_no,
        np.indices((400, 400)).sum(axis=0).astype(np.uint8) % 2 * 255,
        np.zeros((2, 3000), np.uint8) + np.arange(3000, dtype=np.uint8) % 2 * 255,
        rng.integers(0, 256, (1, 1)).astype(np.uint8),
        np.pad(np.zeros((200, 200), np.uint8), 1, constant_values=255),
    ):
        try:
            lines = predictor.read(pixels)
        except ValueError:
            continue
        assert all(line for line in lines)


def test_threads_read_the_same(predictor, digits):
    pages = [write(digits, [str(n), str(n)[::-1]], 40) for n in range(120, 128)]
    alone = [predictor.read(page) for page in pages]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(predictor.read, pages)) == alone


# ---- Command line -------------------------------------------------------------------------


def test_number_prints_numbers_beside_a_file_and_lines_below_it(digits, tmp_path, capsys):
    write(digits, ["123", "45    6"], 60).save(tmp_path / "a.png")
    scribble().save(tmp_path / "b.png")
    Image.new("L", (50, 50), 255).save(tmp_path / "c.png")
    assert main(["--number", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'a.png'}:\n123\n45 6\n{tmp_path / 'b.png'}: no digit\n"
    assert err.count("\n") == 1
    assert "c.png" in err
    assert "blank" in err


def test_number_as_json_has_boxes(digits, tmp_path, capsys):
    path = tmp_path / "a.png"
    write(digits, ["17     3"], 60).save(path)
    assert main(["--number", "--json", str(path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["file"], answer["number"]) == (str(path), "17 3")
    assert answer["numbers"] == [["17", "3"]]
    [[first, second, _]] = answer["lines"]
    assert first["box"][2] <= second["box"][0]
    assert len(first["probabilities"]) == 10


def test_annotated_draws_boxes_into_the_picture(digits, tmp_path, capsys):
    page = write(digits, ["83"], 60)
    page.save(tmp_path / "a.png")
    out = tmp_path / "out.png"
    assert main(["--number", "--annotated", str(out), str(tmp_path / "a.png")]) == 0
    with Image.open(out) as drawn:
        assert drawn.size == page.size
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert ((pixels[:, :, 0] > 200) & (pixels[:, :, 1] < 60)).sum() > 200  # red


def test_a_non_digit_is_named_as_such_and_guessed_when_asked(tmp_path, capsys):
    path = tmp_path / "letter.png"
    letter = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(letter).line([(80, 250), (150, 50), (220, 250)], fill=0, width=12)
    ImageDraw.Draw(letter).line([(105, 180), (195, 180)], fill=0, width=12)
    letter.save(path)
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: no digit\n"
    assert main(["--guess", str(path)]) == 0
    assert "%" in capsys.readouterr().out
    assert main(["--json", str(path)]) == 0
    assert len(json.loads(capsys.readouterr().out)["probabilities"]) == 10


@pytest.mark.parametrize(
    "options",
    [["--annotated", "x.png", "a.png"], ["--number", "--guess", "a.png"]],
    ids=" ".join,
)
def test_options_that_do_not_go_together(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
