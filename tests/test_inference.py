"""inference.py: any image to digit, confidence and probabilities, and its command line."""

import concurrent.futures
import contextlib
import io
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import inference
from benchmarks.photographs import KINDS, photographs
from evaluation import evaluate
from inference import MNISTPredictor, Prediction
from model import normalize
from reading.jobs import large_work, work_ahead
from training.data import PROJECT_DIR, load_mnist, load_sample

FUZZED_FILES = int(os.environ.get("FUZZED_FILES", "100"))


@pytest.fixture(scope="module")
def predictor() -> MNISTPredictor:
    """The weights that ship."""
    return MNISTPredictor()


@pytest.fixture(scope="module")
def seven() -> np.ndarray:
    """A clear 7 as MNIST has it, uint8 (28, 28)."""
    return load_sample(False).images[7].numpy()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


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
    for split in (True, False):  # the network was trained on these
        digits = load_sample(split)
        assert evaluate(predictor.model, digits).accuracy > 0.99


def test_the_shipped_weights_read_the_test_set_as_their_metadata_says(predictor, mnist_dir):
    test = load_mnist(mnist_dir, train=False, download=False)
    assert evaluate(predictor.model, test).misses == predictor.metadata["result"]["misses"]


def test_the_test_set_through_the_predictor_equals_evaluation(predictor, mnist_dir):
    test = load_mnist(mnist_dir, train=False, download=False)
    expected = evaluate(predictor.model, test).probabilities.argmax(dim=1).tolist()
    assert [p.digit for p in predictor.predict_batch(test.images.numpy())] == expected
    images = test.images[:1000].numpy()
    one_by_one = [predictor.predict(Image.fromarray(image)).digit for image in images]
    assert one_by_one == expected[:1000]


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


def test_every_form_of_an_image_gives_the_same_answer(predictor, seven, tmp_path):
    image = Image.fromarray(seven)
    image.save(tmp_path / "seven.png")
    forms = {
        "path": tmp_path / "seven.png",
        "str": str(tmp_path / "seven.png"),
        "bytes": png(image),
        "file": io.BytesIO(png(image)),
        "PIL L": image,
        "PIL RGB": image.convert("RGB"),
        "PIL CMYK": image.convert("RGB").convert("CMYK"),
        "PIL P": image.convert("P"),
        "PIL LA": image.convert("LA"),
        "PIL RGBA": image.convert("RGBA"),
        "PIL I;16": Image.fromarray(seven.astype(np.uint16) * 257),
        "array": seven,
        "array of int64": seven.astype(np.int64),
        "array of float": seven / 255,
        "array (1, H, W)": seven[None],
        "array (H, W, 1)": seven[:, :, None],
        "array (H, W, 3)": np.stack([seven] * 3, axis=2),
        "array (H, W, 4)": np.dstack([seven, seven, seven, np.full_like(seven, 255)]),
        "tensor": torch.from_numpy(seven),
        "tensor of bfloat16": torch.from_numpy(seven / 255).bfloat16(),
        "tensor of float16": torch.from_numpy(seven / 255).half(),
        "tensor that wants a gradient": torch.from_numpy(seven / 255).requires_grad_(),
        "tensor of float (1, H, W)": torch.from_numpy(seven)[None] / 255,
    }
    expected = predictor.predict(seven)
    for name, form in forms.items():
        prediction = predictor.predict(form)
        assert prediction.digit == 7, name
        assert prediction.confidence == pytest.approx(expected.confidence, abs=2e-3), name


@pytest.mark.parametrize("kind", list(KINDS))
def test_images_as_people_have_them_are_read(predictor, kind):
    digits = load_sample(False)
    clear = [30, 11, 2, 23, 14, 5, 26, 7, 18, 9]  # one of each class
    images = photographs(kind, digits.images[clear].numpy(), seed=0)
    read = [predictor.predict(image).digit for image in images]
    assert sum(r == t for r, t in zip(read, digits.labels[clear].tolist(), strict=True)) >= 9


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


def test_an_animated_gif_is_read_by_its_first_frame(predictor, seven):
    buffer = io.BytesIO()
    frames = [Image.fromarray(seven), Image.new("L", (28, 28))]
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:])
    assert predictor.predict(buffer.getvalue()).digit == 7


def test_too_many_pixels_are_refused_before_they_are_decoded(predictor, tmp_path):
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 20_000, 6_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    content = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    content += struct.pack(">I", 1000) + b"IDAT"  # and nothing to be decoded
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(ValueError, match=r"bomb\.png: .*too large: 20000 x 6000"):
        predictor.predict(path)
    with pytest.raises(ValueError, match="too large"):
        predictor.predict(np.broadcast_to(np.uint8(0), (20_000, 6_000)))


def test_damaged_image_files_end_in_an_answer_or_an_error_of_ours(predictor, seven):
    rng = np.random.default_rng(0)
    image = Image.fromarray(255 - seven).resize((56, 56)).convert("RGB")
    files = []
    for name in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"):
        buffer = io.BytesIO()
        image.save(buffer, name)
        files.append(buffer.getvalue())
    answers = 0
    for i in range(FUZZED_FILES):
        content = bytearray(files[i % len(files)])
        for place in rng.integers(0, len(content), rng.integers(1, 12)):
            content[place] = rng.integers(0, 256)
        if i % 3 == 0:
            del content[rng.integers(1, len(content)) :]
        with contextlib.suppress(ValueError, OSError):
            answers += 0 <= predictor.predict(bytes(content)).digit <= 9
    assert answers > FUZZED_FILES / 20  # it was not all refused


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_images_of_every_kind_are_read_or_refused_in_450_mb(seven, tmp_path):
    """With PyTorch itself that is less than 1 GB."""
    digit = Image.fromarray(255 - seven)
    large = digit.resize((9_900, 9_900), Image.NEAREST)
    large.point(lambda value: 255 * (value > 127), "1").save(tmp_path / "a.png")
    large.resize((12_000, 9_000), Image.NEAREST).save(tmp_path / "b.jpg")
    Image.new("L", (5_100, 5_100)).save(tmp_path / "c.webp", quality=0, method=0)
    Image.new("L", (70_000, 2)).save(tmp_path / "d.png")
    digit.save(tmp_path / "e.jpg", progressive=True)
    digit.save(tmp_path / "f.tif", compression="packbits")
    digit.save(tmp_path / "g.tif", compression="packbits")
    size, rows = struct.pack(">HH", 28, 28), struct.pack("<HHII", 278, 3, 1, 28)
    sides = [struct.pack("<HHII", tag, 3, 1, 28) for tag in (256, 257)]
    for name, changes in {  # files of nothing, that say they are large
        "e.jpg": {size: struct.pack(">HH", 9_900, 9_900)},
        "f.tif": {old: old[:8] + struct.pack("<I", 9_900) for old in (*sides, rows)},
        "g.tif": {  # of a single tile of a gigabyte
            rows: struct.pack("<HHII", 278, 4, 1, 47_642),
            struct.pack("<HHII", 284, 3, 1, 1): struct.pack("<HHII", 322, 4, 1, 20_000),
        },
    }.items():
        content = (tmp_path / name).read_bytes()
        for old, new in changes.items():
            assert old in content, (name, old)
            content = content.replace(old, new)
        (tmp_path / name).write_bytes(content)
    code = (
        "import sys, inference, numpy\n"
        "predictor = inference.MNISTPredictor()\n"
        "def highest():\n"
        "    [line] = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "    return int(line.split()[1]) // 1000\n"
        "before = highest()\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        answer = predictor.predict(name).digit\n"
        "    except ValueError as error:\n        answer = str(error)\n"
        "    print(name, highest() - before, answer, sep='|')\n"
        "array = numpy.full((9000, 9000), 1.0)\n"
        "array[3000:6000, 4000:4500] = 0\n"
        "answer = predictor.predict(array).digit\n"
        "print('array', highest() - before - array.nbytes // 10**6, answer, sep='|')\n"
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    environment = os.environ | {"PYTHONPATH": str(PROJECT_DIR)}
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert all(int(memory) < 450 for _, memory, _ in rows), rows
    answers = {name: answer for name, _, answer in rows}
    assert answers["array"] == "1"
    assert [answers[name] for name in names[:2]] == ["7"] * 2
    for name in names[2:]:
        assert "too large" in answers[name], name


def test_values_of_any_number_of_bits_and_floats_are_read(predictor, seven):
    for light in (seven, 255 - seven):
        for bits in (9, 10, 12, 14, 16):
            values = np.round(light / 255 * (2**bits - 1))
            assert predictor.predict(Image.fromarray(values.astype(np.uint16))).digit == 7, bits
            assert predictor.predict(Image.fromarray(values.astype(np.int32))).digit == 7, bits
        for highest in (1, 255, 65_535):
            image = Image.fromarray(np.float32(light / 255 * highest))
            buffer = io.BytesIO()
            image.save(buffer, "tiff")
            assert predictor.predict(image).digit == 7, highest
            assert predictor.predict(buffer.getvalue()).digit == 7, highest
    with pytest.raises(ValueError, match="not finite"):
        predictor.predict(Image.fromarray(np.full((40, 40), np.nan, np.float32)))


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, about those kinds
def test_tensors_that_numpy_does_not_know_are_value_errors(predictor, seven):
    dense = torch.from_numpy(seven)
    tensors = [dense.to_sparse(), dense.float().to_sparse_csr(), dense.to("meta")]
    tensors += [torch.nested.nested_tensor([dense]), dense.to(torch.complex64).conj()]
    if hasattr(torch, "quantize_per_tensor"):  # it will be removed
        tensors += [torch.quantize_per_tensor(dense / 255, 1 / 255, 0, torch.quint8)]
    for tensor in tensors:
        with pytest.raises(ValueError, match="an image tensor must be dense"):
            predictor.predict(tensor)


@pytest.mark.parametrize("images", [None, 5, "a.png", b"abc", PROJECT_DIR, Image.new("L", (9, 9))])
def test_one_image_is_no_batch(predictor, images):
    with pytest.raises(ValueError, match="predict_batch takes several images, not"):
        predictor.predict_batch(images)


def test_oddities_cost_no_warning(predictor, seven, recwarn):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "x" * 200, 1
    buffer = io.BytesIO()
    Image.fromarray(seven).resize((90, 90)).save(buffer, "jpeg", exif=exif)
    content = buffer.getvalue()
    tag = content.index(b"Exif") + 20
    assert predictor.predict(content[:tag] + b"\xff" * 30 + content[tag + 30 :]).digit == 7
    for array in (np.full((28, 28), 6e4, np.float16), np.full((28, 28), 3e38, np.float32)):
        with pytest.raises(ValueError, match="floats in"):
            predictor.predict(array)
    assert not recwarn.list


def test_a_lazy_image_that_is_damaged_is_a_value_error(predictor, seven):
    content = png(Image.fromarray(seven).resize((200, 200)))
    with pytest.raises(ValueError, match="not an image that can be read"):
        predictor.predict(Image.open(io.BytesIO(content[: len(content) // 2])))


def test_threads_may_share_a_predictor(predictor):
    images = load_sample(False).images[:200].numpy()
    expected = predictor.predict_batch(images)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        runs = list(pool.map(lambda _: [predictor.predict(image) for image in images], range(32)))
    for run in runs:
        assert [p.digit for p in run] == [p.digit for p in expected]
        assert run == runs[0]


def test_one_bit_and_palette_images_with_transparency_are_read(predictor, seven):
    large = Image.fromarray(255 - seven).resize((140, 140))
    assert predictor.predict(large.convert("1")).digit == 7
    ink = Image.new("RGBA", large.size, (20, 20, 120, 0))
    ink.putalpha(ImageOps.invert(large))
    buffer = io.BytesIO()
    ink.quantize(16).save(buffer, "png")
    assert Image.open(io.BytesIO(buffer.getvalue())).mode == "P"
    assert predictor.predict(buffer.getvalue()).digit == 7


def test_dark_on_light_transparent_turned_and_large_images_are_read(predictor, seven):
    dark = Image.fromarray(255 - seven)
    assert predictor.predict(dark).digit == 7
    ink = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    ink.putalpha(Image.fromarray(seven))  # black ink, nothing around it
    assert predictor.predict(ink).digit == 7
    wide = Image.new("L", (600, 300), 255)
    wide.paste(dark.resize((290, 290)), (150, 5))
    assert predictor.predict(wide).digit == 7
    turned = dark.rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right by a quarter
    buffer = io.BytesIO()
    turned.save(buffer, "jpeg", exif=exif, quality=95)
    assert predictor.predict(buffer.getvalue()).digit == 7


def test_a_large_turned_jpeg_is_read_and_an_image_of_the_caller_stays_as_it_is(predictor, seven):
    sheet = Image.fromarray(255 - seven).resize((3000, 3000)).rotate(90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    sheet.save(buffer, "jpeg", exif=exif)
    assert predictor.predict(buffer.getvalue()).digit == 7
    opened = Image.open(buffer)  # not decoded yet
    assert predictor.predict(opened).digit == 7
    assert opened.size == (3000, 3000)


def test_predict_batch_takes_any_iterable_and_equals_predict(predictor, monkeypatch):
    images = load_sample(False).images[:30]
    monkeypatch.setattr(inference, "BATCH_SIZE", 7)
    batch = predictor.predict_batch(image for image in images)
    assert [p.digit for p in batch] == [predictor.predict(image).digit for image in images]
    assert predictor.predict_batch([]) == []


def test_threads_that_prepare_a_batch_change_nothing(predictor, seven, tmp_path):
    kinds = ["phone photo", "ruled paper", "small (28-60 px)", "EXIF rotated"]
    digits = load_sample(False).images[:2].numpy()
    images = [image for kind in kinds for image in photographs(kind, digits, seed=0)]
    alone = predictor.predict_batch(images, jobs=1)
    assert predictor.predict_batch(images, jobs=5) == alone
    one = Image.open(io.BytesIO(png(Image.fromarray(255 - seven).resize((90, 90)))))
    assert {p.digit for p in predictor.predict_batch([one] * 9, jobs=5)} == {7}
    bad = [*images[:5], tmp_path / "none.png", b"no image"]
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        predictor.predict_batch(bad, jobs=5)


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


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "not an image"),
        (b"hello, I am text", "not an image"),
        (np.zeros((28, 28), np.uint8), "blank"),
        (np.full((50, 40), 255, np.uint8), "blank"),
        (Image.new("RGBA", (30, 30), (0, 0, 0, 0)), "blank"),
        (np.zeros((0, 28), np.uint8), "no pixels"),
        (Image.new("L", (0, 0)), "no pixels"),
        (Image.new("I;16", (5, 0)), "no pixels"),
        (np.zeros(784, np.uint8), "shape"),
        (np.zeros((2, 28, 28), np.uint8), "shape"),
        (np.full((28, 28), np.nan), "0..1"),
        (np.full((28, 28), 2.0), "0..1"),
        (np.full((28, 28), -1), "0..255"),
        (np.full((28, 28), "a"), "numbers"),
    ],
)
def test_what_is_no_image_of_a_digit_is_a_value_error(predictor, image, message):
    with pytest.raises(ValueError, match=message) as caught:
        predictor.predict(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_image_is_a_value_error_that_names_it(predictor, seven, tmp_path, share):
    content = png(Image.fromarray(seven).resize((200, 200)))
    path = tmp_path / "cut.png"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"cut\.png: not an image that can be read"):
        predictor.predict(path)


def test_a_missing_image_is_a_file_not_found_error(predictor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        predictor.predict(tmp_path / "none.png")


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


def test_the_script_prints_json(seven, tmp_path, capsys, checkpoint):
    Image.fromarray(seven).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    assert inference.main([path, "--json", "--checkpoint", str(checkpoint)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["file", "digit", "confidence", "probabilities"]
    assert answer["file"] == path
    assert answer["probabilities"][answer["digit"]] == answer["confidence"]
    expected = MNISTPredictor(checkpoint).predict(seven)
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
        assert reports[0] == reports[1]
        assert reports[0].out.count("\n") == 9 + (arguments is lists[0])
        assert reports[0].err.count("\n") == 2 + (arguments is lists[1])


@pytest.mark.parametrize("forked", [False, True])
def test_only_a_few_images_are_read_ahead_and_errors_come_in_their_turn(forked):
    numbers, threads = itertools.count(), torch.get_num_threads()
    work = work_ahead(lambda number: 6 // (number - 2), numbers, jobs=3, forked=forked)
    read = [next(work) for _ in range(4)]
    assert [number for number, _, _ in read] == [0, 1, 2, 3]
    assert [answer for _, answer, _ in read] == [-3, -6, None, 6]
    assert [error is not None for _, _, error in read] == [False, False, True, False]
    assert isinstance(read[2][2], ZeroDivisionError)
    assert next(numbers) < 20
    work.close()
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_forked_workers_leave_large_work_to_the_first_and_their_death_shows():
    def work(number: int) -> int:
        if number == 2:
            os._exit(1)
        with large_work() if number else contextlib.nullcontext():
            return os.getpid()

    done = work_ahead(work, range(9), jobs=2, forked=True)
    (_, forked, _), (_, first, _) = next(done), next(done)
    assert (forked == os.getpid(), first == os.getpid()) == (False, True)
    with pytest.raises(ChildProcessError, match="try --jobs 1"):
        next(done)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGINT")
def test_ctrl_c_ends_several_at_once_with_one_line(seven, tmp_path):
    Image.fromarray(255 - seven).resize((900, 900)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text(5000 * f"{tmp_path / 'a.png'}\n")
    script = [sys.executable, str(PROJECT_DIR / "inference.py"), "--jobs", "2", "--files-from"]
    with subprocess.Popen(
        [*script, str(tmp_path / "list.txt")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        run.stdout.readline()
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert err == b"inference.py: interrupted\n"
    assert run.returncode == 130
    assert out.count(b"\n") < 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0", "a.png"], "--jobs must be at least 1, not 0"),
        (["--kaggle", "a.csv", "--submission", "b.csv", "--guess"], "--guess is for images"),
        (["--kaggle", "a.csv", "--submission", "b.csv", "--jobs", "2"], "--jobs is for images"),
        (["--export", "a.onnx", "--save-preprocessed", "b.png"], "--save-preprocessed is for"),
        (["--export", "a.onnx", "a.png"], "give images, or"),
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
