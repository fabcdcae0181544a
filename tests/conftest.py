"""What several tests need: real MNIST where it is at hand, and a network trained in seconds."""

import contextlib
import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from inference import MNISTPredictor
from reading.checkpoint import save_checkpoint
from train import Settings, train
from training.data import load_sample


def unavailable(reason: str) -> None:
    """Skip a whole module that can't run here; in CI, where everything is installed, fail."""
    if os.environ.get("CI") == "true":
        raise RuntimeError(f"CI runs every test: {reason}")
    pytest.skip(reason, allow_module_level=True)


# Few drawings beside the digits: they are there, and take no time at each start.
FEW_DRAWINGS = ["--handwriting", "0.01", "--non-digits", "0.01"]
slow = pytest.mark.skipif(
    "SLOW" not in os.environ, reason="takes long: SLOW=1 python -m pytest runs it"
)


def pytest_report_header() -> list[str]:
    """Say at once what will be skipped, and why."""
    missing = {
        "the long tests: SLOW=1 runs them": "SLOW" in os.environ,
        "all of MNIST: MNIST_DIR=data names its folder": "MNIST_DIR" in os.environ,
        "the notebook: pip install -r requirements-dev.txt": find_spec("nbclient"),
        "the browser: apt-get install chromium": shutil.which("chromium"),
    }
    return [f"skipped: {what}" for what, there in missing.items() if not there]


@pytest.fixture(scope="session", autouse=True)
def heeded_interrupts():
    """A suite that is started in the background ignores Ctrl-C, and so would all that it starts."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder that holds MNIST/raw/ with all 70,000 digits."""
    if "MNIST_DIR" not in os.environ:
        pytest.skip("MNIST_DIR does not name a folder that holds MNIST/raw/")
    return Path(os.environ["MNIST_DIR"])


@pytest.fixture(scope="session")
def trained():
    """A network trained on the bundled sample for six epochs, and its history."""
    return train(load_sample(True), load_sample(False), Settings(epochs=6))


@pytest.fixture(scope="session")
def checkpoint(trained, tmp_path_factory) -> Path:
    """The same network, saved."""
    path = tmp_path_factory.mktemp("trained") / "mnist_cnn.pt"
    model, history = trained
    save_checkpoint(path, model, {"command": "pytest"} | history)
    return path


@pytest.fixture(scope="module")
def predictor() -> MNISTPredictor:
    """The weights that ship."""
    return MNISTPredictor()


@pytest.fixture(scope="module")
def seven() -> np.ndarray:
    """A clear 7 as MNIST has it, uint8 (28, 28)."""
    return load_sample(False).images[7].numpy()


@pytest.fixture
def full_disk():
    """A context in which writing more than so many bytes to any file fails, as on a full disk."""
    resource = pytest.importorskip("resource", reason="needs Unix file-size limits")

    @contextlib.contextmanager
    def limit(n_bytes):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
