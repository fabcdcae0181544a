"""The rooms: which module may import which, and that importing one does nothing."""

import ast
import subprocess
import sys

import pytest

from training.data import PROJECT_DIR

# A module imports only what stands before it. Those that read digits load nothing that trains.
ORDER = ["layers", "distributed", "jobs", "model", "checkpoint", "data", "decoding", "ink"]
ORDER += ["preprocessing", "page", "handwriting", "evaluation", "plots", "results", "train"]
ORDER += ["kaggle", "export", "inference", "canvas", "test_model"]
READING = [
    "jobs",
    "checkpoint",
    "decoding",
    "ink",
    "preprocessing",
    "page",
    "kaggle",
    "inference",
    "canvas",
]
TRAINING = {"distributed", "data", "handwriting", "evaluation", "plots", "results", "train"}


def imports(name: str) -> set[str]:
    """Return which of our modules a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((PROJECT_DIR / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found & set(ORDER)


def test_every_module_has_its_place():
    assert {path.stem for path in PROJECT_DIR.glob("*.py")} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_what_stands_before_it(name):
    assert imports(name) <= set(ORDER[: ORDER.index(name)])


@pytest.mark.parametrize("name", READING)
def test_what_reads_digits_imports_nothing_that_trains(name):
    assert not imports(name) & TRAINING


def test_every_module_imports_without_side_effects(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(PROJECT_DIR)!r}); import torch"
    for name in ORDER:
        code += f"\nstate = torch.get_rng_state(); import {name}"
        code += f"\nassert torch.equal(state, torch.get_rng_state()), {name!r}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
