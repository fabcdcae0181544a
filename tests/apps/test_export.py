"""inference.py --export: the network as ONNX, as ONNX Runtime reads it."""

import sys

import numpy as np
import pytest

import inference
from apps.export import write_onnx
from inference import MNISTPredictor
from training.data import load_mnist

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The shipped weights as ONNX, in a folder of their own."""
    path = tmp_path_factory.mktemp("exported") / "mnist.onnx"
    assert inference.main(["--export", str(path)]) == 0
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
    pixels = load_mnist(mnist_dir, train=False, download=False).images.numpy()
    [found] = session.run(None, {"pixels": pixels})
    expected = MNISTPredictor().predict_batch(pixels)
    assert found.argmax(axis=1).tolist() == [prediction.digit for prediction in expected]
    np.testing.assert_allclose(found, [p.probabilities for p in expected], atol=1e-4)


def test_a_network_that_answers_otherwise_is_not_kept(exported, monkeypatch, tmp_path):
    monkeypatch.setattr("export.to_onnx", lambda *_: exported.read_bytes())

    def predict_batch(images):
        return [(0, 1.0, [1.0] + 9 * [0.0])] * len(images)

    predictor = MNISTPredictor()
    with pytest.raises(ValueError, match="not written"):
        write_onnx(tmp_path / "a.onnx", predictor.model, predictor.temperature, predict_batch)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript", "onnx"])
def test_a_missing_package_is_one_line_that_says_what_to_install(
    package, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    assert inference.main(["--export", str(tmp_path / "a.onnx")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pip install onnx onnxscript onnxruntime" in err
    assert not list(tmp_path.iterdir())
