"""test_model.py, the script that checks a fresh clone from end to end."""

import subprocess
import sys

from PIL import Image

import test_model as quick_check
from reading.checkpoint import load_checkpoint
from training.data import PROJECT_DIR


def test_the_quick_check_trains_saves_reads_draws_and_passes(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROJECT_DIR / "test_model.py"), "--output-dir", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED: 9" in done.stdout
    assert load_checkpoint(tmp_path / "mnist_cnn.pt")[1]["data"] == "bundled sample of MNIST"
    with Image.open(tmp_path / "predictions.png") as picture:
        assert min(picture.size) > 500


def test_the_quick_check_fails_when_too_few_digits_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quick_check, "EPOCHS", 1)
    assert quick_check.main(["--output-dir", str(tmp_path)]) == 1
    assert "FAILED: " in capsys.readouterr().out


def test_the_quick_check_says_in_one_line_that_it_cannot_write(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("mine")
    assert quick_check.main(["--output-dir", str(path)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(path) in err
