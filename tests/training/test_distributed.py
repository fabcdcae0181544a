"""torchrun train.py: several processes, on one machine or more, train one network.

Runs with SLOW=1: it takes over a minute.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FEW_DRAWINGS, slow

from reading.checkpoint import load_checkpoint
from train import evaluate
from training.data import PROJECT_DIR, load_mnist, load_sample

pytestmark = slow
SETTINGS = ["--sample", "--epochs", "4", *FEW_DRAWINGS]


def torchrun(output_dir, *settings, launch=("--nproc-per-node=2",)) -> subprocess.Popen:
    """Start a group of processes in a process group of its own, as a shell would."""
    command = [sys.executable, "-m", "torch.distributed.run", *launch]
    command += [str(PROJECT_DIR / "train.py"), "--output-dir", str(output_dir), *settings]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_line(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} never came: {process.stderr.read()}")


def workers(process) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def is_running(pid) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of a run of two processes, whose name is not UTF-8, and what it printed."""
    folder = tmp_path_factory.mktemp("two") / "out\udcff"
    code, out, err = finish(torchrun(folder, *SETTINGS))
    assert code == 0, err
    assert "Warning" not in out + err
    return folder, out


def test_two_processes_learn_and_speak_with_one_voice(two_processes):
    folder, out = two_processes
    assert "processes   2, with 1 threads each" in out
    assert [out.count(f" {epoch}/4 ") for epoch in (1, 2, 3, 4)] == [1, 1, 1, 1]
    history = json.loads((folder / "history.json").read_text())
    assert history["processes"] == 2
    assert history["rows"][-1]["test_accuracy"] > 0.94  # one process: 96%
    names = {"mnist_cnn.pt", "training_state.pt", "history.json", "history.png"}
    names |= {"confusion_matrix.png", "mistakes.png"}
    assert {path.name for path in folder.iterdir() if path.name != ".lock"} == names
    command = load_checkpoint(folder / "mnist_cnn.pt")[1]["command"]
    drawings = " ".join(FEW_DRAWINGS)
    assert command == f"torchrun --nproc-per-node=2 train.py --epochs 4 {drawings} --sample"


def test_the_misses_are_those_that_one_process_counts(two_processes):
    folder, _ = two_processes
    model, metadata = load_checkpoint(folder / "mnist_cnn.pt")
    alone = evaluate(model, load_sample(train=False))
    assert metadata["result"]["misses"] == alone.misses
    assert metadata["result"]["test_loss"] == pytest.approx(alone.loss, rel=1e-5)


def test_three_processes_share_a_batch_smaller_than_they_are(tmp_path, mnist_dir):
    """Steps on batches of two: one process always has nothing to do."""
    settings = ["--data-dir", str(mnist_dir), "--dry-run", "--epochs", "1", "--batch-size", "2"]
    code, _, err = finish(torchrun(tmp_path, *settings, launch=["--nproc-per-node=3"]))
    assert code == 0, err
    model, metadata = load_checkpoint(tmp_path / "mnist_cnn.pt")
    digits = load_mnist(mnist_dir, train=False)
    assert metadata["result"]["misses"] == evaluate(model, digits[:250]).misses


def test_two_nodes_meet_train_and_resume_what_is_finished(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=digits"]
    launch += [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    folders = [tmp_path / "one", tmp_path / "other"]  # as on machines that share no disk
    for arguments in ([], ["--resume"]):
        if arguments:  # the first process may be on either now
            [source] = [folder for folder in folders if folder.exists()]
            [target] = [folder for folder in folders if not folder.exists()]
            shutil.copytree(source, target)
        nodes = [torchrun(folder, *SETTINGS, *arguments, launch=launch) for folder in folders]
        results = [finish(node) for node in nodes]
        assert [code for code, _, _ in results] == [0, 0], results
        assert any("resuming after epoch 4 of 4" in out for _, out, _ in results) == bool(arguments)
    metadata = load_checkpoint(folders[0] / "mnist_cnn.pt")[1]
    assert metadata["result"]["test_accuracy"] > 0.94
    assert metadata["command"].startswith("torchrun --nproc-per-node=2 train.py ")


def test_a_group_that_lost_a_process_is_restarted_and_resumes(tmp_path, two_processes):
    """To the very same bytes."""
    launch = ["--nproc-per-node=2", "--max-restarts=2"]
    process = torchrun(tmp_path, *SETTINGS, "--resume", launch=launch)
    wait_for_line(process, " 2/4 ")
    os.kill(workers(process)[1], signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 0, err
    assert "resuming after epoch 2 of 4" in out or "resuming after epoch 1 of 4" in out
    expected = two_processes[0] / "mnist_cnn.pt"
    assert (tmp_path / "mnist_cnn.pt").read_bytes() == expected.read_bytes()


def test_a_killed_process_ends_the_whole_group_with_one_message(tmp_path):
    process = torchrun(tmp_path, *SETTINGS, "--epochs", "500")
    wait_for_line(process, " 2/500 ")
    pids = workers(process)
    os.kill(pids[1], signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 1
    assert err.count("train.py: error:") <= 1  # torchrun may end the first process before it
    assert not any(is_running(pid) for pid in pids)
    assert err.count("Traceback") <= 1  # torchrun's own


def test_ctrl_c_ends_the_whole_group_with_one_message(tmp_path):
    process = torchrun(tmp_path, *SETTINGS, "--epochs", "500")
    wait_for_line(process, " 2/500 ")
    pids = workers(process)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code != 0
    assert err.count("train.py: interrupted; if a run had begun, the same command") == 1, err
    assert err.count("Traceback") <= 1  # torchrun's own
    assert not any(is_running(pid) for pid in pids)
    assert (tmp_path / "training_state.pt").exists()


def test_all_processes_hold_the_same_weights_and_sum_up_as_one(tmp_path):
    """What a large batch is worth: the gradient of two halves is that of the whole."""
    code = (
        "import os, sys, torch, train\n"
        "from training.data import load_sample\n"
        "from training.distributed import from_first, joined, rank, sum_up, world_size\n"
        "with joined():\n"
        "    torch.set_num_threads(1)\n"
        "    settings = train.Settings(epochs=1, augment=False, precision='float32',"
        " handwriting=0, non_digits=0.1)\n"
        "    run = train.Trainer(load_sample(True)[:600], settings)\n"
        "    run.model.dropout1.p = run.model.dropout2.p = 0.0\n"
        "    list(run.iter_epochs(load_sample(False)[:100]))\n"
        "    theirs = from_first(run.model.state_dict)\n"
        "    same = torch.tensor([all(torch.equal(theirs[n], t) for n, t in"
        " run.model.state_dict().items())]).float()\n"
        "    sum_up([same])\n"
        "    assert same == world_size(), same\n"
        "    if rank() == 0:\n"
        "        torch.save(run.model.state_dict(), sys.argv[1])\n"
        # A thread of the group that lives on may end the process with SIGABRT when Python exits.
        "tasks = os.listdir('/proc/self/task')\n"
        "threads = [open(f'/proc/self/task/{task}/comm').read() for task in tasks]\n"
        "assert not any('gloo' in name for name in threads), threads\n"
    )
    (tmp_path / "script.py").write_text(code)
    found = []
    for n in (1, 3):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}"]
        command += [str(tmp_path / "script.py"), str(tmp_path / f"{n}.pt")]
        environment = os.environ | {"PYTHONPATH": str(PROJECT_DIR), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(tmp_path / f"{n}.pt", weights_only=True))
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_group_that_nobody_started_is_one_line(tmp_path):
    command = [sys.executable, str(PROJECT_DIR / "train.py"), "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(
        command, env=os.environ | {"WORLD_SIZE": "2"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "train.py: error: " in done.stderr
    assert "MASTER_ADDR" in done.stderr


def test_bad_settings_are_refused_by_one_process(tmp_path):
    code, _, err = finish(torchrun(tmp_path, "--epochs", "0"))
    assert code != 0
    assert err.count("train.py: error: epochs must be in 1..1000000, not 0") == 1
