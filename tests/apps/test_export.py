"""apps/export.py: the network as ONNX, as ONNX Runtime reads it."""

import sys

import numpy as np
import pytest

from apps import export
from apps.export import to_onnx
from inference import MNISTPredictor
from model import MNISTClassifier
from training.data import load_mnist

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The shipped weights as ONNX, in a folder of their own."""
    path = tmp_path_factory.mktemp("exported") / "mnist.onnx"
    assert export.main([str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def session(exported):
    return onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])


def test_pixels_go_in_and_probabilities_come_out(exported, session):
    [pixels], [probabilities] = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("pixels", "tensor(uint8)", ["N", 28, 28])
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    for n in (1, 3):
        [found] = session.run(None, {"pixels": np.zeros((n, 28, 28), np.uint8)})
        assert found.shape == (n, 10)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert [path.name for path in exported.parent.iterdir()] == ["mnist.onnx"]


def test_the_test_set_is_read_as_by_the_predictor(session, mnist_dir):
    pixels = load_mnist(mnist_dir, train=False, download=False).images[:2000].numpy()
    [found] = session.run(None, {"pixels": pixels})
    expected = MNISTPredictor().predict_batch(pixels)
    assert found.argmax(axis=1).tolist() == [prediction.digit for prediction in expected]
    np.testing.assert_allclose(found, [p.probabilities for p in expected], atol=1e-4)


def test_a_network_that_answers_otherwise_is_not_kept(monkeypatch, tmp_path, capsys):
    other = to_onnx(MNISTClassifier())  # of untrained weights
    monkeypatch.setattr(export, "to_onnx", lambda _: other)
    assert export.main([str(tmp_path / "a.onnx")]) == 1
    assert "a.onnx: not written: ONNX Runtime answers otherwise" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript", "onnx"])
def test_a_missing_package_is_one_line_that_says_what_to_install(
    package, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    assert export.main([str(tmp_path / "a.onnx")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("export.py: error: ")
    assert err.count("\n") == 1
    assert "pip install onnx onnxscript onnxruntime" in err
    assert not list(tmp_path.iterdir())
