"""reading/image_io.py: files, arrays and tensors of any kind, depth and size, and what is none."""

import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from inference import MNISTPredictor
from reading.image_io import to_grayscale

FUZZED_FILES = int(os.environ.get("FUZZED_FILES", "35"))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


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


def test_an_animated_gif_is_read_by_its_first_frame(predictor, seven):
    buffer = io.BytesIO()
    frames = [Image.fromarray(seven), Image.new("L", (28, 28))]
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:])
    assert predictor.predict(buffer.getvalue()).digit == 7


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


def test_values_of_any_number_of_bits_and_floats_are_read(predictor, seven):
    for light in (seven, 255 - seven):
        for bits in (10, 16):
            values = np.round(light / 255 * (2**bits - 1))
            assert predictor.predict(Image.fromarray(values.astype(np.uint16))).digit == 7, bits
            assert predictor.predict(Image.fromarray(values.astype(np.int32))).digit == 7, bits
        for highest in (1, 65_535):
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


def test_a_lazy_image_that_is_damaged_is_a_value_error(predictor, seven):
    content = png(Image.fromarray(seven).resize((200, 200)))
    with pytest.raises(ValueError, match="not an image that can be read"):
        predictor.predict(Image.open(io.BytesIO(content[: len(content) // 2])))


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
        (np.zeros(783, np.uint8), "shape"),
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


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large, and holds nothing to be decoded."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + content + struct.pack(">I", 1000) + b"IDAT"


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch, tmp_path):
    """Pillow's limit counts, whatever the user set it to."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    (tmp_path / "bomb.png").write_bytes(bomb(2_000, 1_001))
    with pytest.raises(ValueError, match=r"bomb\.png: the image is too large: .*2002000 pixels"):
        MNISTPredictor().predict(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match="not an image that can be read"):
        to_grayscale(bomb(2_000, 1_001))


def test_pillow_s_warnings_and_limit_are_left_to_the_user(predictor, seven, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(seven).resize((90, 90)).save(buffer, "png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8_000)
    with pytest.warns(Image.DecompressionBombWarning):
        assert predictor.predict(buffer.getvalue()).digit == 7
    assert Image.MAX_IMAGE_PIXELS == 8_000


def test_a_photo_of_50_megapixels_is_decoded_at_a_fraction_of_its_size(seven):
    buffer = io.BytesIO()
    sheet = Image.new("L", (8_160, 6_120), 255)
    sheet.paste(Image.fromarray(255 - seven).resize((3_000, 3_000)), (2_500, 1_500))
    sheet.save(buffer, "jpeg")
    gray, size = to_grayscale(buffer.getvalue())
    assert size == sheet.size
    assert max(gray.shape) < 2_560
    assert MNISTPredictor().predict(gray).digit == 7


def test_running_out_of_memory_is_not_called_a_bad_image(monkeypatch, seven):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(MemoryError):
        to_grayscale(Image.fromarray(seven))


@pytest.mark.parametrize("image", [{}, None, [], 7, [[0, 1], [1, 0]]])
def test_what_is_no_image_at_all_is_told_what_is_taken(predictor, image):
    kind = type(image).__name__
    with pytest.raises(ValueError, match=f"an image is a path, bytes, .*, not {kind}"):
        predictor.predict(image)


@pytest.mark.parametrize("shape", [(784,), (1, 784), (784, 1), (1, 1, 784)])
def test_a_flat_array_is_told_to_be_reshaped(predictor, seven, shape):
    for array in (seven.reshape(shape), torch.from_numpy(seven.reshape(shape)) / 255):
        with pytest.raises(ValueError, match=r"reshape\(28, 28\)"):
            predictor.predict(array)


def test_further_pages_of_a_tiff_are_not_dropped_without_a_word(
    predictor, seven, tmp_path, recwarn
):
    pages = [Image.fromarray(255 - seven).resize((90, 90)), Image.new("L", (90, 90))]
    pages[0].save(tmp_path / "one.tif")
    assert predictor.predict(tmp_path / "one.tif").digit == 7
    assert not recwarn.list
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match=r"two\.tif: a TIFF of 2 pages; only the first is read"):
        assert predictor.predict(tmp_path / "two.tif").digit == 7


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_says_what_to_install(brand, tmp_path):
    if "HEIF" in Image.MIME:
        pytest.skip("Pillow reads HEIC here")
    (tmp_path / "IMG_1.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    with pytest.raises(ValueError, match=r"IMG_1\.heic: .*pip install pillow-heif, or export it"):
        MNISTPredictor().predict(tmp_path / "IMG_1.heic")


def test_a_very_narrow_image_is_read_or_blank(predictor):
    with pytest.raises(ValueError, match="blank"):
        predictor.predict(np.zeros((2, 70_000), np.uint8))
