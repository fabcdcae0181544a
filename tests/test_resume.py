"""train.py --resume: a run that was killed goes on to the very same weights.

With SLOW=1, 4 times; KILLS=200 sets another number.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import FEW_DRAWINGS, slow

import train
from reading.checkpoint import CheckpointError, load_checkpoint, load_content, save_content
from training.data import PROJECT_DIR
from training.runs import STATE_FORMAT

KILLS = int(os.environ.get("KILLS", "4"))
# Small epochs: much of the time goes into writing the state.
SETTINGS = ["--sample", "--batch-size", "1000", "--epochs", "4", *FEW_DRAWINGS]
TIMINGS = ("images_per_second", "seconds")


def start(output_dir, *arguments, **options) -> subprocess.Popen:
    command = [sys.executable, str(PROJECT_DIR / "train.py"), "--output-dir", str(output_dir)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*command, *arguments], **options)


def run(output_dir, *arguments) -> tuple[int, str, str]:
    process = start(output_dir, *arguments)
    out, err = process.communicate()
    return process.returncode, out, err


def untimed(path) -> dict:
    """Return a history without what differs between equal runs."""
    history = json.loads(path.read_text())
    for row in history["rows"]:
        for name in TIMINGS:
            del row[name]
    return history


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    code, _, err = run(folder, *SETTINGS)
    assert (code, err) == (0, "")
    return folder


def check_equal(folder, uninterrupted):
    assert (folder / "mnist_cnn.pt").read_bytes() == (uninterrupted / "mnist_cnn.pt").read_bytes()
    assert untimed(folder / "history.json") == untimed(uninterrupted / "history.json")
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in uninterrupted.iterdir()}  # no stray files


@slow
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path, uninterrupted):
    """Half of the kills wait for a write to begin: of the state, or of the results."""
    chance = random.Random(0)
    kills = writes = runs = 0
    while kills < KILLS:
        runs += 1
        folder = tmp_path / str(runs)
        finished = False
        while not finished:
            known = set(folder.iterdir()) if folder.exists() else set()
            process = start(folder, *SETTINGS, "--resume")
            in_a_write = kills % 2 == 1
            patience = time.monotonic() + chance.uniform(2, 8)
            while process.poll() is None and (in_a_write or time.monotonic() < patience):
                if not in_a_write:
                    time.sleep(0.01)
                elif folder.exists():
                    unfinished = set(folder.glob(".*.tmp")) - known
                    if unfinished and chance.random() < 0.3:
                        break
            finished = process.poll() is not None
            if not finished and kills < KILLS:
                process.send_signal(signal.SIGKILL)
                kills += 1
            _, err = process.communicate()
            if finished or process.returncode == 0:
                assert (process.returncode, err) == (0, "")
                finished = True
            else:
                writes += bool(list(folder.glob(".*.tmp")))
            if (folder / "training_state.pt").exists():  # whole at every moment
                load_content(folder / "training_state.pt", STATE_FORMAT)
        check_equal(folder, uninterrupted)
    print(f"\n{kills} kills, {writes} of them inside a write, in {runs} runs: nothing lost")
    assert writes > 0


@slow
def test_ctrl_c_leaves_a_state_that_resumes(tmp_path, uninterrupted):
    process = start(tmp_path, *SETTINGS)
    for line in process.stdout:
        if line.strip().startswith("3/4"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate()
    assert process.returncode == 130
    assert "the same command with --resume goes on after its last epoch" in err
    code, out, err = run(tmp_path, *SETTINGS, "--resume")
    assert (code, err) == (0, "")
    assert "resuming after epoch" in out
    assert out.count("accuracy  misses") == 1  # the heads of the columns
    check_equal(tmp_path, uninterrupted)


def test_another_torch_is_warned_of_and_another_matplotlib_is_not(uninterrupted, tmp_path, capsys):
    state = load_content(uninterrupted / "training_state.pt", STATE_FORMAT)
    for name, warnings in (("matplotlib", 0), ("torch", 1)):
        state["history"]["versions"][name] = "1.0"
        save_content(tmp_path / "training_state.pt", STATE_FORMAT, state)
        assert train.main(["--output-dir", str(tmp_path), *SETTINGS, "--resume"]) == 0
        err = capsys.readouterr().err
        assert err.count("the last bits of the weights may differ: torch 1.0") == warnings
        assert err.count("\n") == warnings


@pytest.mark.parametrize("name", ["train.save_results", "train.Trainer.train_epoch"])
def test_what_ctrl_c_promises_holds(tmp_path, monkeypatch, capsys, name):
    """While results are written, and in the first epoch of a run over an older one."""
    arguments = ["--sample", "--dry-run", "--output-dir", str(tmp_path)]
    assert train.main([*arguments, "--epochs", "1"]) == 0

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(name, interrupt)
        assert train.main(arguments) == 130
    assert "--resume goes on after its last epoch" in capsys.readouterr().err
    assert train.main([*arguments, "--resume"]) == 0
    finished = 2 if name == "train.save_results" else 0
    assert f"resuming after epoch {finished} of 2" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "mnist_cnn.pt")[1]["epochs_finished"] == 2


def test_with_nothing_to_resume_it_starts_afresh_and_says_so(tmp_path, capsys):
    assert train.main(["--dry-run", "--sample", "--output-dir", str(tmp_path), "--resume"]) == 0
    assert "nothing to resume: no " in capsys.readouterr().out
    assert (tmp_path / "mnist_cnn.pt").exists()


def test_a_finished_run_writes_its_results_again_the_very_same(tmp_path, uninterrupted):
    """They may be missing: it was killed before they were written."""
    shutil.copy(uninterrupted / "training_state.pt", tmp_path)
    code, out, err = run(tmp_path, *SETTINGS, "--resume")
    assert (code, err) == (0, "")
    assert "resuming after epoch 4 of 4" in out
    check_equal(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["--epochs", "13"], ["epochs 4 in the state, 13 here"]),
        (["--seed", "5", "--momentum", "0.5"], ["seed 0 in the state, 5 here", "momentum 0.9"]),
        (["--no-augment"], ["augment True in the state, False here"]),
        (["--precision", "float32"], ["precision"]),
    ],
)
def test_other_settings_are_named_and_refused(uninterrupted, settings, named, capsys):
    if settings == ["--precision", "float32"] and train.Settings().precision == "float32":
        settings = ["--precision", "bfloat16"]
    arguments = ["--output-dir", str(uninterrupted), *SETTINGS, *settings, "--resume"]
    before = (uninterrupted / "training_state.pt").read_bytes()
    assert train.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(text in err for text in named), err
    assert (uninterrupted / "training_state.pt").read_bytes() == before


def test_a_state_of_other_data_is_named_and_refused(uninterrupted, mnist_dir, capsys):
    arguments = ["--output-dir", str(uninterrupted), *SETTINGS[1:], "--data-dir", str(mnist_dir)]
    assert train.main([*arguments, "--resume"]) == 1
    assert "data bundled sample of MNIST in the state, MNIST here" in capsys.readouterr().err


def test_a_damaged_foreign_or_older_state_is_refused_in_one_line(tmp_path, uninterrupted, capsys):
    path, whole = tmp_path / "training_state.pt", (uninterrupted / "training_state.pt").read_bytes()
    arguments = ["--output-dir", str(tmp_path), *SETTINGS, "--resume"]

    def refused(content):
        path.write_bytes(content)
        assert train.main(arguments) == 1
        assert path.read_bytes() == content
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "leave out --resume to start afresh" in err
        return err

    assert "training_state.pt: damaged" in refused(whole[:-1000])
    assert "training_state.pt: damaged" in refused(b"")
    save_content(path, STATE_FORMAT, {"version": 1})
    assert "version 1, not" in refused(path.read_bytes())
    assert "mnist-classifier" in refused((uninterrupted / "mnist_cnn.pt").read_bytes())
    with pytest.raises(CheckpointError, match="it holds 'mnist-classifier training state'"):
        load_checkpoint(uninterrupted / "training_state.pt")


@slow
def test_a_second_run_into_the_same_folder_says_so_and_stops(tmp_path):
    with start(tmp_path, *SETTINGS, "--epochs", "500") as first:
        for line in first.stdout:
            if line.strip().startswith("1/500"):
                break
        code, _, err = run(tmp_path, *SETTINGS)
        assert code == 1
        assert err == (
            f"train.py: error: {tmp_path}: another train.py writes there; wait for it, or choose "
            "another --output-dir\n"
        )
        assert first.poll() is None
        first.send_signal(signal.SIGINT)
        first.communicate()
        assert first.returncode == 130
