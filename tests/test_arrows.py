"""Which folder may import which, and that importing a module does nothing."""

import ast
import subprocess
import sys

import pytest

from training.data import PROJECT_DIR

FOLDERS = ("reading", "training", "apps")
# What each may import beside itself; a file at the top is a place of its own.
MAY_IMPORT = {
    "model": set(),
    "reading": {"model"},
    "training": {"model", "reading"},
    "train": {"model", "reading", "training"},
    "inference": {"model", "reading"},
    "apps": {"model", "reading", "inference", "training.data"},
    "test_model": {"model", "reading", "inference", "train", "training"},
}


def modules() -> dict[str, str]:
    """Return the dotted name of each module that git knows, and where it stands in MAY_IMPORT."""
    files = subprocess.check_output(["git", "ls-files", "*.py"], cwd=PROJECT_DIR, text=True)
    names = [name.removesuffix(".py").replace("/", ".") for name in files.splitlines()]
    places = {name: name.split(".")[0] for name in names if not name.endswith("__init__")}
    return {name: place for name, place in places.items() if place in MAY_IMPORT}


def imports(name: str) -> set[str]:
    """Return the dotted names that a module imports, anywhere in it."""
    found = set()
    source = (PROJECT_DIR / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_arrows_run_down_only(place):
    ours = {name for name, where in modules().items() if where == place}
    if not ours:
        pytest.skip("not a git checkout")
    for name in ours:
        for imported in imports(name):
            top, _, rest = imported.partition(".")
            if top in MAY_IMPORT and top != place:
                both = {top, f"{top}.{rest.split('.')[0]}"}
                assert both & MAY_IMPORT[place], f"{name} imports {imported}"


def test_no_module_waits_for_itself():
    """There is no circle of imports, in a folder or between them."""
    names = modules()
    graph = {
        name: {
            other
            for other in names
            if any(f"{imported}.".startswith(f"{other}.") for imported in imports(name))
        }
        for name in names
    }
    while free := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph


def test_every_module_imports_without_side_effects(tmp_path):
    code = f"import sys, importlib; sys.path.insert(0, {str(PROJECT_DIR)!r}); import torch\n"
    code += "threads = torch.get_num_threads()\n"
    for name in modules():
        code += f"state = torch.get_rng_state(); importlib.import_module({name!r})\n"
        code += f"assert torch.equal(state, torch.get_rng_state()), {name!r}\n"
    code += "assert torch.get_num_threads() == threads"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
