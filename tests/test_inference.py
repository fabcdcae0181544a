"""inference.py: any image to digit, confidence and probabilities, and its command line."""

import concurrent.futures
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from conftest import slow
from PIL import Image

import inference
from benchmarks.photographs import KINDS, photographs
from inference import MNISTPredictor, Prediction
from model import normalize
from reading import loading
from reading.segmentation import Candidate, Line
from training.data import PROJECT_DIR, load_mnist, load_sample


@pytest.fixture(autouse=True)
def limit(monkeypatch) -> None:
    """Pillow's own limit of pixels, after each test: the command line sets its own."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def same(predictions: list[Prediction], expected: list[Prediction]) -> bool:
    """Whether the digits are the same, and the probabilities to 1e-5."""
    probabilities = [[p.probabilities for p in found] for found in (predictions, expected)]
    np.testing.assert_allclose(*probabilities, atol=1e-5)
    return [p.digit for p in predictions] == [p.digit for p in expected]


# ---- The predictor ------------------------------------------------------------------------


def test_the_shipped_weights_are_mnist_s_and_read_nearly_all_of_the_sample(predictor):
    metadata = predictor.metadata
    assert metadata["data"] == "MNIST"
    assert metadata["train_digits"] == 60_000
    assert metadata["command"] == "python train.py --epochs 60"
    assert metadata["settings"]["epochs"] == metadata["epochs_finished"] == 60
    assert metadata["settings"]["seed"] == 0  # fixed before, not the luckiest
    assert {"python", "torch", "numpy"} <= set(metadata["versions"])
    assert metadata["result"]["test_accuracy"] == 1 - metadata["result"]["misses"] / 10_000
    assert metadata["result"]["misses"] <= 40
    digits = load_sample(False)  # the network was trained on these
    read = torch.tensor([p.digit for p in predictor.predict_batch(digits.images)])
    assert (read == digits.labels).float().mean() > 0.99


def test_the_shipped_weights_read_the_test_set_as_their_metadata_says(predictor, mnist_dir):
    test = load_mnist(mnist_dir, train=False, download=False)
    read = [p.digit for p in predictor.predict_batch(test.images)]
    assert (torch.tensor(read) != test.labels).sum() == predictor.metadata["result"]["misses"]
    images = test.images[:300].numpy()
    assert [predictor.predict(Image.fromarray(image)).digit for image in images] == read[:300]


def test_mnist_like_images_pass_through_untouched(predictor):
    images = load_sample(False).images
    batch = torch.stack([predictor.preprocess(image) for image in images])
    assert torch.equal(batch, normalize(images))


def test_a_prediction_unpacks_and_adds_up(predictor, seven):
    prediction = predictor.predict(seven)
    digit, confidence, probabilities = prediction
    assert isinstance(prediction, Prediction)
    assert digit == 7
    assert type(digit) is int
    assert type(confidence) is float
    assert len(probabilities) == 10
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert confidence == max(probabilities) == probabilities[7] > 0.9


@pytest.mark.parametrize("kind", list(KINDS))
def test_images_as_people_have_them_are_read(predictor, kind):
    digits = load_sample(False)
    clear = [30, 2, 14, 5, 7]  # a 0, a 2, a 4, a 5 and a 7
    images = photographs(kind, digits.images[clear].numpy(), seed=0)
    read = [predictor.predict(image).digit for image in images]
    n_right = sum(r == t for r, t in zip(read, digits.labels[clear].tolist(), strict=True))
    assert n_right >= 4 - (kind == "ring around the digit")  # some rings are taken for ink


def test_ink_is_found_on_a_sheet_on_a_table_and_beside_a_thumb(predictor, seven):
    sheet = Image.new("L", (300, 300), 235)
    sheet.paste(30, (80, 70), Image.fromarray(seven).resize((150, 150)))
    table = Image.new("L", (600, 500), 60)
    table.paste(sheet.rotate(4, fillcolor=60, expand=True), (150, 90))
    assert predictor.predict(table).digit == 7
    thumb = sheet.copy()
    thumb.paste(150, (0, 240, 60, 300))
    assert predictor.predict(thumb).digit == 7


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (500, 1), (3, 2), (2000, 20)])
def test_any_shape_of_image_is_read_or_blank(predictor, shape):
    rng = np.random.default_rng(0)
    for array in (rng.integers(0, 256, shape, np.uint8), np.eye(*shape)):
        try:
            assert 0 <= predictor.predict(array).digit <= 9
        except ValueError as error:
            assert "blank" in str(error)


def test_a_blank_sheet_is_blank_even_if_photographed(predictor):
    rng = np.random.default_rng(0)
    shade = np.linspace(0.5, 0.9, 300)[None].repeat(200, 0)
    for sheet in (shade, (shade + rng.normal(0, 0.02, shade.shape)).clip(0, 1)):
        with pytest.raises(ValueError, match="the image is blank: no ink found"):
            predictor.predict(sheet)


@pytest.mark.parametrize("images", [None, 5, "a.png", b"abc", PROJECT_DIR, Image.new("L", (9, 9))])
def test_one_image_is_no_batch(predictor, images):
    with pytest.raises(ValueError, match="predict_batch takes several images, not"):
        predictor.predict_batch(images)


def test_threads_may_share_a_predictor(predictor):
    images = load_sample(False).images[:60].numpy()
    expected = predictor.predict_batch(images)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: [predictor.predict(image) for image in images], range(8)))
    for run in runs:
        assert [p.digit for p in run] == [p.digit for p in expected]
        assert run == runs[0]


def test_preprocess_gives_a_normalized_tensor_of_one_image(predictor, seven):
    tensor = predictor.preprocess(Image.fromarray(255 - seven).resize((140, 140)))
    assert tensor.shape == (1, 28, 28)
    assert tensor.dtype == torch.float32
    assert tensor.min() >= -0.43
    assert tensor.max() <= 2.83


def test_predicting_takes_no_random_numbers(predictor, seven):
    state = torch.get_rng_state()
    predictor.predict(seven)
    assert torch.equal(torch.get_rng_state(), state)


# ---- Several images at once ---------------------------------------------------------------


def test_a_batch_is_taken_whole_in_every_form_and_equals_predict(predictor, monkeypatch):
    images = load_sample(False).images[:70]
    expected = [predictor.predict(image) for image in images]
    for batch in (
        images,
        images.numpy(),
        images[:, None],
        images.numpy()[:, None] / 255,
        images / 255,
        images.numpy()[::-1][::-1],
        (image for image in images),
        [Image.fromarray(image) for image in images.numpy()],
        [*images.numpy()[:66], *map(Image.fromarray, images.numpy()[66:68]), *images[68:]],
    ):
        assert same(predictor.predict_batch(batch), expected)
    assert predictor.predict_batch([]) == predictor.predict_batch(images[:0]) == []


def test_a_batch_of_which_some_are_like_mnist_s_equals_predict(predictor):
    images = load_sample(False).images[:40].clone()
    images[3], images[7] = 255 - images[3], images[7].roll(6, 0)
    assert same(predictor.predict_batch(images), [predictor.predict(image) for image in images])
    images[30] = 0
    with pytest.raises(ValueError, match="blank"):
        predictor.predict_batch(images)
    with pytest.raises(ValueError, match=r"floats in 0\.\.1"):
        predictor.predict_batch(images.float())


def test_a_batch_that_is_endless_is_read_bit_by_bit(predictor, seven):
    taken = itertools.count()
    images = (seven if next(taken) < 200 else b"no image" for _ in itertools.count())
    with pytest.raises(ValueError, match="not an image"):
        predictor.predict_batch(images)
    assert next(taken) < 205


def test_worker_processes_change_nothing(predictor, seven, tmp_path):
    kinds = ["phone photo", "small (28-60 px)", "EXIF rotated"]
    digits = load_sample(False).images[:2].numpy()
    images = [image for kind in kinds for image in photographs(kind, digits, seed=0)]
    opened = Image.fromarray(255 - seven).resize((90, 90))
    opened.save(tmp_path / "seven.png")
    images += [tmp_path / "seven.png", (tmp_path / "seven.png").read_bytes(), opened, seven]
    images += [torch.from_numpy(seven), io.BytesIO(images[-3])]
    alone = predictor.predict_batch(images)
    state = torch.get_rng_state()
    assert same(predictor.predict_batch(images, jobs=2), alone)
    assert torch.equal(torch.get_rng_state(), state)
    bad = [*images[:5], tmp_path / "none.png", b"no image", lambda: 0]
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        predictor.predict_batch(bad, jobs=2)
    with pytest.raises(ValueError, match="not function"):
        predictor.predict_batch([seven, lambda: 0], jobs=1)
    with pytest.raises(ValueError, match="jobs must be at least 0"):
        predictor.predict_batch([seven], jobs=-1)


def test_no_process_is_started_that_was_not_asked_for(predictor, seven, monkeypatch):
    monkeypatch.setattr(multiprocessing.Process, "start", lambda _: pytest.fail("a process"))
    assert len(predictor.predict_batch([seven] * 9)) == 9


@pytest.mark.parametrize("jobs", [0, 2])
def test_only_a_few_items_are_taken_ahead_and_answers_come_in_order(jobs):
    numbers = itertools.count()
    answers = iter(loading.work_ahead(abs, numbers, jobs))
    assert [next(answers) for _ in range(40)] == list(range(40))
    assert next(numbers) < 50


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_a_worker_process_that_dies_is_one_line(seven, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(inference, "read_item", die)
    for name in ("a.png", "b.png"):
        Image.fromarray(seven).save(tmp_path / name)
    assert inference.main([str(tmp_path), "--jobs", "2"]) == 1
    err = capfd.readouterr().err
    assert err.startswith("inference.py: error: a worker process died")
    assert err.count("\n") == 1


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_spawned_processes_read_as_forked_ones(seven, tmp_path):
    """As on Windows and macOS; the settings of the first process reach them."""
    large = Image.fromarray(255 - seven).resize((300, 300))
    large.save(tmp_path / "a.png")
    for name in ("b.png", "c.jpg"):
        large.resize((200, 200)).save(tmp_path / name)
    code = (
        "import multiprocessing, sys, inference\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    inference.MAX_PHOTO_PIXELS = 300 * 300 - 1\n"
        "    sys.exit(inference.main(['.', '--jobs', '2', '--number']))\n"
    )
    (tmp_path / "read.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(PROJECT_DIR)}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "read.py"], **options)
    assert done.returncode == 1, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("inference.py: error: ./a.png: the image is too large")
    assert done.stdout.splitlines() == ["./b.png: 7", "./c.jpg: 7"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGINT")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=slow)])
def test_ctrl_c_ends_several_at_once_with_one_line(method, seven, tmp_path):
    """Also while the processes start, which takes spawned ones seconds."""
    Image.fromarray(255 - seven).resize((900, 900)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text(5000 * f"{tmp_path / 'a.png'}\n")
    code = (
        "import multiprocessing, signal, sys, inference\n"
        "if __name__ == '__main__':\n"  # in the background, a process is started to ignore SIGINT
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"    multiprocessing.set_start_method({method!r})\n"
        "    print('ready', flush=True)\n"
        "    sys.exit(inference.main(['--jobs', '2', '--files-from', 'list.txt']))\n"
    )
    (tmp_path / "read.py").write_text(code)
    with subprocess.Popen(
        [sys.executable, "read.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT_DIR)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as run:
        assert run.stdout.readline() == b"ready\n"
        time.sleep(1)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers too
        out, err = run.communicate(timeout=60)
    assert err == b"inference.py: interrupted\n"
    assert run.returncode == 130
    assert out.count(b"\n") < 1000


# ---- The command line ---------------------------------------------------------------------


def test_the_script_prints_a_line_for_each_image(seven, tmp_path):
    for name in ("a.png", "b b.png"):
        Image.fromarray(seven).save(tmp_path / name)
    done = subprocess.run(
        [sys.executable, str(PROJECT_DIR / "inference.py"), "a.png", "b b.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith("a.png: 7 (")
    assert second.startswith("b b.png: 7 (")


def test_the_script_prints_json(seven, tmp_path, capsys, predictor):
    Image.fromarray(seven).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    assert inference.main([path, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["file", "digit", "confidence", "probabilities"]
    assert answer["file"] == path
    assert answer["probabilities"][answer["digit"]] == answer["confidence"]
    expected = predictor.predict(seven)
    assert answer["confidence"] == pytest.approx(expected.confidence)


def test_one_bad_image_is_reported_and_the_others_are_read(seven, tmp_path, capsys):
    good, text, blank = (tmp_path / name for name in ("good.png", "text.png", "blank.png"))
    Image.fromarray(seven).save(good)
    text.write_text("hello")
    Image.new("L", (9, 9)).save(blank)
    (tmp_path / "empty").mkdir()
    bad = [text, blank, tmp_path / "none.png", tmp_path / "empty"]
    assert inference.main([str(path) for path in [*bad, good]]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{good}: 7")
    assert err.count("\n") == 4
    for line, path in zip(err.splitlines(), bad, strict=True):
        assert str(path) in line
    assert "the image is blank: no ink found" in err


def drop_last_digits(line: str) -> str:
    """Round the numbers of a line: they depend a little on the number of threads."""
    return re.sub(r"\d+\.\d+(e-\d+)?", lambda number: f"{float(number[0]):.3f}", line)


@pytest.mark.parametrize("option", ["--json", "--number"])
def test_several_at_once_are_reported_as_one_by_one(option, tmp_path, capsys):
    for i, image in enumerate(load_sample(False).images[:9].numpy()):
        Image.fromarray(255 - image).resize((90 - 7 * i, 90 - 7 * i)).save(tmp_path / f"{i}.jpg")
    for name in ("4b.png", "7b.png"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "list.txt").write_text(str(tmp_path / "0.jpg"))
    lists = [["--files-from", str(tmp_path / "list.txt")], ["--files-from", str(tmp_path)]]
    for arguments in lists:  # the second can't be read
        reports = []
        for jobs in ("1", "3"):
            assert inference.main([str(tmp_path), option, "--jobs", jobs, *arguments]) == 1
            reports.append(capsys.readouterr())
        answers = [[drop_last_digits(line) for line in r.out.splitlines()] for r in reports]
        assert answers[0] == answers[1]
        assert reports[0].err == reports[1].err
        assert reports[0].out.count("\n") == 9 + (arguments is lists[0])
        assert reports[0].err.count("\n") == 2 + (arguments is lists[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0", "a.png"], "--jobs must be at least 1, not 0"),
        (["--number", "--guess", "a.png"], "for one digit, not for --number"),
        (["--annotated", "b.png", "a.png"], "goes with --number"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        inference.main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_folders_and_patterns_are_read_file_by_file(seven, tmp_path, capsys):
    (tmp_path / "inner").mkdir()
    for name in ("b.png", "a.jpg", "inner/c.bmp"):
        Image.fromarray(seven).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert inference.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [str(tmp_path / name) for name in ("a.jpg", "b.png", "inner/c.bmp")]
    assert [line.split(":")[0] for line in lines] == names
    assert inference.main([str(tmp_path / "*.png")]) == 0
    assert capsys.readouterr().out.startswith(names[1] + ": 7")


def test_a_damaged_tiff_is_one_line(seven, tmp_path, capfd):
    buffer = io.BytesIO()
    Image.fromarray(seven).resize((90, 90)).save(buffer, "tiff", compression="tiff_lzw")
    content = bytearray(buffer.getvalue())
    content[40:200:7] = bytes(23)  # libtiff would write a line of its own
    (tmp_path / "bad.tif").write_bytes(content)
    assert inference.main([str(tmp_path / "bad.tif")]) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "bad.tif: not an image that can be read" in err


def test_what_the_network_saw_can_be_saved(predictor, seven, tmp_path, capsys):
    path, saved = tmp_path / "a.png", tmp_path / "saw.png"
    Image.fromarray(255 - seven).resize((300, 300)).save(path)
    assert inference.main([str(path), "--save-preprocessed", str(saved)]) == 0
    shown = np.asarray(Image.open(saved))
    assert shown.shape == (280, 280)
    expected = predictor.preprocess(path)[0].numpy() * 0.3081 + 0.1307
    np.testing.assert_allclose(shown[5::10, 5::10] / 255, expected, atol=1 / 255)
    with pytest.raises(SystemExit) as caught:
        inference.main([str(path), str(path), "--save-preprocessed", str(saved)])
    assert caught.value.code == 2
    assert "takes one image" in capsys.readouterr().err


def test_a_bad_checkpoint_or_no_image_is_one_line(tmp_path, capsys):
    (tmp_path / "bad.pt").write_bytes(b"hello")
    assert inference.main(["a.png", "--checkpoint", str(tmp_path / "bad.pt")]) == 1
    assert inference.main(["a.png", "--checkpoint", str(tmp_path / "none.pt")]) == 1
    damaged, missing = capsys.readouterr().err.splitlines()
    assert "bad.pt: damaged" in damaged
    assert "none.pt: no such checkpoint" in missing
    with pytest.raises(SystemExit) as caught:
        inference.main([])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_inference_starts_without_torchvision_matplotlib_and_train():
    code = (
        "import sys, inference; inference.MNISTPredictor();"
        "unwanted = ('torchvision', 'matplotlib', 'train', 'data', 'distributed', 'plots');"
        "print([name for name in unwanted if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_stdin_that_is_too_long_is_refused(seven, tmp_path, monkeypatch, capsys):
    Image.fromarray(seven).save(tmp_path / "seven.png")
    with open(tmp_path / "seven.png", "rb") as file:
        monkeypatch.setattr(loading, "open", lambda *_, **__: file, raising=False)
        monkeypatch.setattr(loading, "MAX_STDIN_SIZE", 100)
        assert inference.main(["-"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line == "inference.py: error: -: more than 100 bytes; give the name of a file"


def test_what_could_only_be_read_in_part_is_a_line_of_warning(seven, tmp_path, capsys):
    page = Image.fromarray(255 - seven).resize((90, 90))
    for name in ("a.tif", "b.tif"):
        page.save(tmp_path / name, save_all=True, append_images=[page])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inference.main([str(tmp_path), "--jobs", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.count(": 7 (") == out.count("\n") == 2
    expected = [f"{tmp_path / name}: a TIFF of 2 pages" for name in ("a.tif", "b.tif")]
    for line, start in zip(err.splitlines(), expected, strict=True):
        assert line.startswith(f"inference.py: warning: {start}")


def test_heic_in_a_folder_is_named(seven, tmp_path, capsys):
    if "HEIF" in Image.MIME:
        pytest.skip("Pillow reads HEIC here")
    Image.fromarray(seven).save(tmp_path / "b.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    assert inference.main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'b.png'}: 7 (")
    assert err.startswith(f"inference.py: error: {tmp_path / 'IMG_1.HEIC'}: not an image")
    assert "pip install pillow-heif" in err
    assert err.count("\n") == 1


def test_too_little_memory_is_a_line_of_its_own(seven, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise MemoryError

    Image.fromarray(seven).save(tmp_path / "a.png")
    monkeypatch.setattr("reading.image_io.flatten", fail)
    assert inference.main([str(tmp_path / "a.png")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert (
        line == f"inference.py: error: {tmp_path / 'a.png'}: there is not enough memory to read it"
    )


def test_dark_ink_on_a_transparent_ground_is_dark_on_light_where_annotated(seven, tmp_path, capsys):
    ink = Image.new("RGBA", (280, 280), (0, 0, 0, 0))
    ink.putalpha(Image.fromarray(seven).resize((280, 280)))
    ink.save(tmp_path / "ink.png")
    arguments = ["--number", "--annotated", str(tmp_path / "out.png")]
    assert inference.main([str(tmp_path / "ink.png"), *arguments]) == 0
    assert capsys.readouterr().out.endswith(": 7\n")
    annotated = np.asarray(Image.open(tmp_path / "out.png"))
    assert (annotated[0, 0] == 255).all()
    assert (annotated == 0).all(axis=2).any()
    assert ((annotated[:, :, 0] > 200) & (annotated[:, :, 1] < 50)).any()  # the box


def test_a_number_of_which_half_is_sure_is_read(monkeypatch, predictor):
    """And one of which most is unlikely is none."""
    confidences = [0.99, 0.8, 0.1, 0.1]

    def read_page(gray, classify):
        found = [Prediction(i, c, ()) for i, c in enumerate(confidences[:n])]
        place = {"box": (0, 0, 1, 1), "starts_number": False, "ink": 1}
        digits = [Candidate(p, p.confidence, p.confidence, **place) for p in found]
        return [Line(digits, ink=n)]

    monkeypatch.setattr(inference, "read_page", read_page)
    image, strict = np.zeros((9, 9)), MNISTPredictor(min_confidence=0.9)
    n = 2
    assert [[found.digit for found in line] for line in strict.read(image)] == [[0, 1]]
    n = 4
    assert strict.read(image) == []


def test_the_confidence_that_is_asked_for_is_the_checkpoints_own(predictor):
    assert predictor.min_confidence == predictor.metadata["min_confidence"] > 0.5
    with pytest.raises(ValueError, match=r"min_confidence must be in 0\.\.1, not 2"):
        MNISTPredictor(min_confidence=2)


def test_the_predictor_changes_no_settings_of_the_process(seven):
    filters, threads, pixels = (
        list(warnings.filters),
        torch.get_num_threads(),
        Image.MAX_IMAGE_PIXELS,
    )
    MNISTPredictor().predict(seven)
    assert (warnings.filters, torch.get_num_threads()) == (filters, threads)
    assert pixels == Image.MAX_IMAGE_PIXELS


def test_an_image_of_16_bits_is_not_white_where_annotated(seven):
    image = Image.fromarray(257 * (255 - seven).astype(np.uint16))
    assert np.ptp(np.asarray(inference.annotate(image, []))) == np.ptp(seven)


def test_what_was_not_preprocessed_is_refused(predictor):
    with pytest.raises(ValueError, match=r"\(N, 1, 28, 28\), not \(2, 1, 14, 28\)"):
        predictor.classify(torch.zeros(2, 1, 14, 28))
    with pytest.raises(ValueError, match=r"not \(28, 28\); predict takes one"):
        predictor.predict_batch(torch.zeros(28, 28, dtype=torch.uint8))


def test_a_folder_without_images_is_named(tmp_path, capsys):
    assert inference.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"inference.py: error: {tmp_path}: a folder without images\n"
