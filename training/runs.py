"""A run in its folder: one writer at a time, and a state from which the run can be resumed."""

import argparse
import dataclasses
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from reading.checkpoint import load_checkpoint, load_content, save_content
from training.distributed import from_first, world_size

STATE_FORMAT = "mnist-classifier training state"
STATE, MODEL = "training_state.pt", "mnist_cnn.pt"
OUTPUTS = (STATE, "history.json", "history.png", "confusion_matrix.png", "mistakes.png", MODEL)
ANOTHER = "choose another --output-dir"


def folder(name: str) -> Path:
    """Return the path of a folder; an empty name, of a variable that is not set, is none."""
    if not name:
        raise argparse.ArgumentTypeError("the name of a folder must not be empty")
    return Path(name)


def claim_folder(lock: FileLock) -> None:
    """Make the folder of a lock and keep others out of it, and clear up after dead writers.

    Raises OSError, with what to do, if it or a file in it can't be written, or another has it.
    """
    folder = Path(lock.lock_file).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except TimeoutError:
        reason = f"another train.py writes there; wait for it, or {ANOTHER}"
        raise BlockingIOError(f"{folder}: {reason}") from None
    except OSError as error:
        raise OSError(f"{folder}: can't write there ({error.strerror}); {ANOTHER}") from error
    for path in (folder / name for name in OUTPUTS):
        if path.is_dir():
            raise IsADirectoryError(f"{path}: a folder, where a file goes; move it, or {ANOTHER}")
    for unfinished in folder.glob(f".{'[0-9a-f]' * 16}.tmp"):
        unfinished.unlink(missing_ok=True)


def keep_model_of_mnist(output_dir: Path, data: str) -> None:
    """Raise ValueError where a model of other data would replace one of MNIST unasked."""
    path = output_dir / MODEL
    try:
        kept = load_checkpoint(path)[1].get("data")
    except (OSError, ValueError):  # there is none, or no good one
        return
    if kept == "MNIST" != data:
        remedy = f"{ANOTHER} to train on the sample"
        raise ValueError(f"{path}: was trained on MNIST, and is kept; {remedy}")


def command_line(settings: Any, default: Any, flags: list[str]) -> str:
    """Return the command that gives these weights, without what goes without saying here."""
    n = world_size()
    words = ["python train.py" if n == 1 else f"torchrun --nproc-per-node={n} train.py"]
    for name, value in dataclasses.asdict(settings).items():
        if value != getattr(default, name):
            flag = name.replace("_", "-")
            words += [f"--no-{flag}"] if value is False else [f"--{flag} {value}"]
    return " ".join(words + flags)


def save_state(run: Any, output_dir: Path) -> None:
    """Write all that a run needs to go on."""
    from_first(lambda: save_content(output_dir / STATE, STATE_FORMAT, run.state_dict()))


def resume(run: Any, output_dir: Path) -> None:
    """Let a run go on where its state says, if there is one.

    Raises ValueError, with what to do, if the state is damaged or of another run.
    """
    path = output_dir / STATE
    try:
        state = from_first(lambda: path.exists() and load_content(path, STATE_FORMAT))
        if not state:
            print(f"nothing to resume: no {path}; starting afresh")
            return
        run.load_state_dict(state)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: {reason}; leave out --resume to start afresh") from error
    print(f"resuming after epoch {len(run.history['rows'])} of {run.settings.epochs}")


def check_same(there: dict, here: dict) -> None:
    """Check that a state's history is that of the same run as a history here.

    Raises ValueError for other settings, and warns where the last bits of the weights may differ.
    """
    if others := differences(there, here, "data", "train_digits", *here["settings"], "processes"):
        raise ValueError(f"of a run with other settings: {others}")
    if others := differences(there, here, "threads", "torch"):
        print(f"WARNING: the last bits of the weights may differ: {others}", file=sys.stderr)


def differences(there: dict, here: dict, *names: str) -> str:
    """Name what differs between two histories."""
    there, here = ({**row, **row["versions"], **row["settings"]} for row in (there, here))
    others = [name for name in names if there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)} in the state, {here[name]} here" for name in others)


def versions() -> dict[str, str]:
    """Return which Python and which libraries run."""
    libraries = ("torch", "torchvision", "numpy", "matplotlib")
    return {"python": platform.python_version()} | {name: version(name) for name in libraries}
