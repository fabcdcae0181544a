"""data.py: the bundled sample, MNIST itself, and what happens when a file is bad."""

import gzip
import hashlib
import http.server
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
import torchvision

from training import data
from training.data import PROJECT_DIR, augment, load_mnist, load_sample

SAMPLE_DIGESTS = [  # images and labels to train on, images and labels to test on
    "52454974f5606fb1",
    "d0ff9a7f0016d0ce",
    "05f16c885f80bb90",
    "abbc512c3acb0f8c",
]
SAMPLE_RAW = PROJECT_DIR / "sample" / "MNIST" / "raw"


def arrays(digits):
    return digits.images, digits.labels


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_digits_have_a_length_and_are_cut_by_slices_indices_and_masks():
    digits = load_sample(train=False)
    assert len(digits) == 1000
    for rows, expected in (
        (slice(3, 9), range(3, 9)),
        (torch.tensor([7, 1]), [7, 1]),
        (digits.labels == 4, (digits.labels == 4).nonzero().flatten().tolist()),
        (slice(0), []),
    ):
        some = digits[rows]
        assert len(some) == len(expected)
        assert torch.equal(some.images, digits.images[list(expected)])
        assert torch.equal(some.labels, digits.labels[list(expected)])
        assert some.name == digits.name == "bundled sample of MNIST"
    moved = digits.to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"


def test_digits_are_a_data_set_like_any_other():
    digits = load_sample(train=False)
    image, label = digits[3]
    assert (image.shape, image.dtype, label) == ((28, 28), torch.uint8, int(digits.labels[3]))
    with pytest.raises(IndexError):
        digits[1000]
    images, labels = next(iter(torch.utils.data.DataLoader(digits, batch_size=16)))
    assert torch.equal(images, digits.images[:16])
    assert torch.equal(labels, digits.labels[:16])


def test_the_sample_is_5000_digits_500_a_class():
    training, test = load_sample(train=True), load_sample(train=False)
    assert training.images.shape == (4000, 28, 28)
    assert test.images.shape == (1000, 28, 28)
    for digits, each in ((training, 400), (test, 100)):
        assert digits.images.dtype == torch.uint8
        assert digits.labels.dtype == torch.int64
        assert digits.labels.bincount().tolist() == [each] * 10
    both = torch.cat([training.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 5000  # none twice, so none in both parts


def test_the_sample_is_the_one_that_was_bundled():
    assert sum(file.stat().st_size for file in SAMPLE_RAW.iterdir()) < 1_100_000
    digests = [sha256(tensor) for split in (True, False) for tensor in arrays(load_sample(split))]
    assert [digest[:16] for digest in digests] == SAMPLE_DIGESTS


def test_the_sample_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(load_sample(train=False)) == 1000


def test_the_sample_is_part_of_the_training_set_with_its_labels(mnist_dir):
    official = load_mnist(mnist_dir, train=True, download=False)
    label_of = {
        image.tobytes(): label
        for image, label in zip(official.images.numpy(), official.labels.tolist(), strict=True)
    }
    for split in (True, False):
        images, labels = arrays(load_sample(split))
        assert [label_of[image.tobytes()] for image in images.numpy()] == labels.tolist()


def test_mnist_loads_whole_from_gz_and_extracted_files(mnist_dir, tmp_path):
    training = load_mnist(mnist_dir, train=True, download=False)
    assert training.images.shape == (60_000, 28, 28)
    assert training.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    raw_dir = tmp_path / "MNIST" / "raw"
    raw_dir.mkdir(parents=True)
    for file in (mnist_dir / "MNIST" / "raw").glob("t10k*.gz"):
        (raw_dir / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    test = load_mnist(tmp_path, train=False, download=False)
    assert test.images.shape == (10_000, 28, 28)
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_a_missing_file_without_download_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(tmp_path, train=True, download=False)
    text = str(caught.value)
    assert str(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz") in text
    assert "python train.py downloads" in text
    assert "\n" not in text


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def alter(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def grow(content: bytes) -> bytes:
    return content + b"x"


def empty(content: bytes) -> bytes:
    return b""


@pytest.fixture
def sample_as_mnist(tmp_path, monkeypatch) -> Path:
    """A data folder whose files are small: the sample stands in for MNIST, digests and all."""
    shutil.copytree(SAMPLE_RAW, tmp_path / "MNIST" / "raw")
    monkeypatch.setattr(data, "MNIST_SHA256", data.SAMPLE_SHA256)
    return tmp_path


@pytest.mark.parametrize("damage", [cut, alter, grow, empty])
@pytest.mark.parametrize("extracted", [False, True])
@pytest.mark.parametrize("name", list(data.MNIST_SHA256))
def test_a_damaged_file_is_named_and_left_alone(sample_as_mnist, name, extracted, damage):
    path = sample_as_mnist / "MNIST" / "raw" / f"{name}.gz"
    if extracted:
        path = path.with_suffix("")
        path.write_bytes(gzip.decompress(path.with_name(f"{name}.gz").read_bytes()))
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(ValueError) as caught:
        load_mnist(sample_as_mnist, train=name.startswith("train"))
    text = str(caught.value)
    assert str(path) + ":" in text
    assert "damaged" in text
    assert "delete it" in text
    assert "\n" not in text
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("name", list(data.MNIST_SHA256))
def test_each_file_that_is_missing_is_named(sample_as_mnist, name):
    path = sample_as_mnist / "MNIST" / "raw" / f"{name}.gz"
    path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(sample_as_mnist, train=name.startswith("train"), download=False)
    assert str(path) in str(caught.value)


def test_a_damaged_file_of_real_mnist_is_named(mnist_dir, tmp_path):
    raw_dir = tmp_path / "MNIST" / "raw"
    raw_dir.mkdir(parents=True)
    for file in (mnist_dir / "MNIST" / "raw").glob("t10k*.gz"):
        shutil.copyfile(file, raw_dir / file.name)
    path = raw_dir / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz: damaged"):
        load_mnist(tmp_path, train=False)


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves a folder of MNIST files; `behaviour` makes it misbehave."""

    folder: Path
    behaviour = "good"

    def do_GET(self):
        if self.behaviour == "missing":
            return self.send_error(404)
        if self.behaviour == "redirects for ever":
            self.send_response(302)
            self.send_header("Location", self.path)
            return self.end_headers()
        content = (self.folder / Path(self.path).name).read_bytes()
        if self.behaviour == "a page":
            content = b"<!DOCTYPE html><title>Log in to the network</title>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.behaviour == "altered":
            content = alter(content)
        if self.behaviour in ("half", "stalled"):
            content = cut(content)
        self.wfile.write(content)
        if self.behaviour == "stalled":
            self.wfile.flush()
            self.server.stopped.wait(30)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A real mirror on loopback, the only one that torchvision knows."""

    def start(folder, behaviour="good"):
        handler = type("Handler", (Mirror,), {"folder": folder, "behaviour": behaviour})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.stopped = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        if behaviour == "refuses":
            server.shutdown()
            server.socket.close()
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url])

    servers = []
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield start
    for server in servers:
        server.stopped.set()
        server.shutdown()
        server.server_close()


def test_mnist_is_downloaded_verified_and_kept(mnist_dir, mirror, tmp_path):
    mirror(mnist_dir / "MNIST" / "raw")
    assert len(load_mnist(tmp_path, train=False)) == 10_000
    mirror(mnist_dir / "MNIST" / "raw", "missing")
    assert len(load_mnist(tmp_path, train=True)) == 60_000  # already there
    names = sorted(path.name for path in (tmp_path / "MNIST").rglob("*"))
    assert names == sorted(["raw", *data.MNIST_SHA256, *(f"{n}.gz" for n in data.MNIST_SHA256)])


FAILURES = ["missing", "half", "altered", "stalled", "redirects for ever", "a page", "refuses"]


@pytest.mark.parametrize("behaviour", FAILURES)
def test_a_failed_download_is_one_line_and_leaves_no_file(mirror, tmp_path, behaviour, monkeypatch):
    monkeypatch.setattr(data, "DOWNLOAD_TIMEOUT", 0.5)
    mirror(SAMPLE_RAW, behaviour)  # right names; the MD5 that torchvision knows is of others
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match="could not be downloaded") as caught:
        load_mnist(tmp_path, train=True)
    assert time.monotonic() - started < 20  # it did not wait for the mirror
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augmentation_changes_every_digit_differently_and_follows_the_generator():
    images = load_sample(train=False).images
    before = images.clone()
    first, second, other = (augment(images, seeded(seed)) for seed in (0, 0, 1))
    assert first.shape == (1000, 1, 28, 28)
    assert first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 255.01
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    repeated = augment(images[:1].repeat(50, 1, 1), seeded())
    assert len(repeated.flatten(1).unique(dim=0)) == 50


def test_distortion_moves_digits_a_little_and_keeps_their_ink():
    images = load_sample(train=False).images.unsqueeze(1).float()

    def center(pixels):
        weight = pixels.flatten(1) / pixels.flatten(1).sum(1, keepdim=True)
        grid = torch.arange(28.0)
        return weight @ torch.stack([grid.repeat(28), grid.repeat_interleave(28)], dim=1)

    # Centres of mass move by up to the shift, plus what turning about the middle adds; ink
    # neither appears nor goes, but for the scale.
    for strength, farthest, spread, least, most in [
        (1, 6, 1.2, 0.5, 1.85),
        (1 / 3, 2, 0.4, 0.8, 1.25),
    ]:
        shown = data.distort(images, seeded(), strength)
        moved = center(shown) - center(images)
        assert moved.abs().max() < farthest
        assert spread < moved.std(dim=0).min() < 2 * spread
        ink = shown.flatten(1).sum(1) / images.flatten(1).sum(1)
        assert ink.min() > least and ink.max() < most


def sharpness(images):
    """How much of what changes over two pixels changes over one."""
    near, far = images[..., 1:] - images[..., :-1], images[..., 2:] - images[..., :-2]
    return float((near**2).mean() / (far**2).mean())


def test_a_batch_has_digits_as_sharp_as_mnists_and_blurred_ones():
    images = load_sample(train=False).images.unsqueeze(1).float()
    kept = data.distort(images, seeded(), 1 / 3)
    assert sharpness(kept) > 0.91 * sharpness(images)  # bilinear interpolation leaves 0.88
    softened = data.soften(images, seeded())
    both = zip(softened, images, strict=True)
    each = [sharpness(after) / sharpness(before) for after, before in both]
    assert min(each) < 0.93 and max(each) > 0.99


def test_what_surrounds_a_digit_is_added_and_what_pens_do_is_done():
    images = load_sample(train=False).images[:200].unsqueeze(1).float()
    ink = images.flatten(1).sum(1)
    for change in (data.add_neighbours, data.add_ruled_lines, data.add_joins):
        changed = change(images, seeded())
        assert (changed >= images).all(), change  # the digit itself is still there
        assert (changed.flatten(1).sum(1) > ink).float().mean() > 0.8, change
        assert changed.max() <= 255
    beside = data.add_neighbours(images, seeded())
    assert torch.equal(beside[..., 12:16], images[..., 12:16])  # at one side, never in the middle
    left, right = (
        (beside - images)[..., columns].flatten(1).sum(1) for columns in (slice(12), slice(16, 28))
    )
    assert (left * right == 0).all() and (left > 0).any() and (right > 0).any()
    broken = data.add_breaks(images, seeded())
    assert (broken <= images).all() and (broken.flatten(1).sum(1) < ink).float().mean() > 0.8
    pens = data.change_pens(images, seeded()).flatten(1).sum(1) / ink
    assert pens.min() < 0.75 and pens.max() > 1.5
    torch.testing.assert_close(
        data.thicken(images, 2), torch.nn.functional.max_pool2d(images, 5, 1, 2)
    )


def test_small_loops_are_filled_and_large_ones_are_not():
    places = torch.arange(28.0) - 13.5
    distance = torch.hypot(places, places[:, None])
    small, large = (255.0 * ((distance - r).abs() < 1).view(1, 1, 28, 28) for r in (2.5, 8))
    assert data.fill_loops(small, seeded())[0, 0, 12:16, 12:16].min() == 255
    assert torch.equal(data.fill_loops(large, seeded())[0, 0, 12:16, 12:16], torch.zeros(4, 4))


def test_some_digits_of_a_batch_get_surroundings_and_fewer_later():
    images = load_sample(train=False).images.unsqueeze(1).float()
    counts = []
    for strength in (1.0, data.LAST_STRENGTH):
        changed = data.add_context(images, seeded(), strength)
        counts.append((changed != images).flatten(1).any(1).float().mean().item())
    assert 0.4 < counts[0] < 0.8
    assert counts[1] == pytest.approx(counts[0] / 3, abs=0.05)
    assert torch.equal(data.add_context(images, seeded(), 0.0), images)
