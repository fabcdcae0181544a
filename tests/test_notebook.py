"""The notebook, executed: in a clone, alone in an empty folder, as on Colab, as on Kaggle."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import slow, unavailable

from inference import MNISTPredictor
from training.data import load_sample

try:
    import anywidget  # noqa: F401
    import nbformat
    from make_notebook import (
        NOTEBOOK,
        PACKED_FILES,
        PROJECT_DIR,
        carried_source,
        copy_project,
        execute,
        find_cell,
        read_file,
        shorten,
        unpack_files,
    )
    from nbclient.exceptions import CellExecutionError
except ImportError as error:
    unavailable(f"needs requirements-dev.txt: {error}")

FILES = ["model.py", *PACKED_FILES]
FIGURES = ["look", "augment", "train", "curves", "confusion", "filters", "maps", "samples"]
FIGURES += ["worst", "reasons", "yours"]
OFFLINE = {
    "PIP_NO_INDEX": "1",
    "http_proxy": "http://127.0.0.1:9",  # where nobody listens
    "https_proxy": "http://127.0.0.1:9",
}


@pytest.fixture
def notebook():
    """The notebook as it is committed, without its outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


@pytest.fixture
def alone(tmp_path):
    """A folder where the notebook is on its own."""
    folder = tmp_path / "alone"
    folder.mkdir()
    return folder


def outputs(notebook, cell_id):
    return find_cell(notebook, cell_id).outputs


def text(notebook, cell_id):
    return "".join(output.get("text", "") for output in outputs(notebook, cell_id))


def up_to(notebook, cell_id):
    """Cut the notebook off after a cell."""
    ids = [cell.id for cell in notebook.cells]
    notebook.cells = notebook.cells[: ids.index(cell_id) + 1]
    return notebook


def shortened(notebook):
    cell = find_cell(notebook, "train")
    cell.source = shorten(cell.source)
    return notebook


def check_outputs(notebook, epochs=12, accuracy=0.95):
    """No error, no warning, every figure; and the network has learned."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", (cell.id, output.text)
            assert "Warning" not in output.get("text", ""), (cell.id, output.text)
    for cell_id in FIGURES:
        assert any("image/png" in output.get("data", {}) for output in outputs(notebook, cell_id))
    last_epoch = text(notebook, "train").splitlines()[-1].split()
    assert last_epoch[0] == f"{epochs}/{epochs}"
    assert float(last_epoch[4].rstrip("%")) / 100 > accuracy, last_epoch
    assert "421,642 parameters" in text(notebook, "shapes")


def test_the_notebook_carries_the_modules_as_they_are():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    remedy = "a module differs from what the notebook carries: run python tests/make_notebook.py"
    assert find_cell(notebook, "carry-model").source == carried_source(), remedy
    assert unpack_files(notebook) == {name: read_file(name) for name in PACKED_FILES}, remedy


def test_the_notebook_carries_all_that_its_modules_import():
    code = "import sys, apps.canvas, apps.kaggle, train\n"
    code += "print([m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, check=True
    )
    files = [Path(file) for file in ast.literal_eval(done.stdout)]
    ours = {f.relative_to(PROJECT_DIR).as_posix() for f in files if PROJECT_DIR in f.parents}
    assert ours <= set(FILES)


def test_the_notebook_starts_with_the_tour():
    """A title, a cell that is folded where there is folding, and then the network."""
    title, files, part, network = nbformat.read(NOTEBOOK, as_version=4).cells[:4]
    assert title.source.startswith("# ")
    assert files.metadata.jupyter.source_hidden
    assert files.metadata.cellView == "form"
    assert files.metadata["_kg_hide-input"]
    assert len(files.source.splitlines()) < 60  # where there is none
    assert len(files.source) < 85_000
    assert part.cell_type == "markdown"
    assert "class MNISTClassifier" in network.source


def test_the_committed_notebook_reads_well_where_nothing_runs():
    content = NOTEBOOK.read_text(encoding="utf-8")
    assert len(content) < 1.5e6
    # Machine paths, save for the one where Kaggle has its data.
    assert not re.search(r"/(home|root|tmp|Users|mnt|opt|work|usr)/|[A-Z]:\\\\\\\\", content)
    assert str(PROJECT_DIR) not in content
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    check_outputs(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [cell.id for cell in notebook.cells if cell.metadata] == ["files"]
    assert "widget-view" not in content
    [canvas] = outputs(notebook, "canvas")
    assert len(canvas.data["image/png"]) > 10_000  # the picture of it in use


@slow
def test_in_a_clone_it_runs_from_top_to_bottom(notebook, tmp_path):
    copy_project(tmp_path)
    execute(notebook, tmp_path, **OFFLINE)
    check_outputs(notebook)
    assert text(notebook, "data").startswith("bundled sample of MNIST: 4,000 digits")
    assert text(notebook, "files") == f"{', '.join(PACKED_FILES)}: here already\n"
    assert text(notebook, "carry-model") == "model.py: here already\n"
    assert "that come with the project" in text(notebook, "yours")
    assert "The ink is found by a network" in text(notebook, "yours")
    [canvas] = outputs(notebook, "canvas")
    assert "application/vnd.jupyter.widget-view+json" in canvas.data
    assert "To draw" in canvas.data["text/plain"]  # for where the widget can't show
    assert len(MNISTPredictor(tmp_path / "outputs" / "notebook" / "mnist_cnn.pt").metadata) > 3


@slow
def test_alone_as_on_colab_it_brings_its_modules_and_trains(notebook, alone, mnist_dir, tmp_path):
    """With MNIST's files in place; and Colab is asked to show widgets that are not its own."""
    colab = tmp_path / "site" / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").write_text("")
    (colab / "output.py").write_text(
        "class _widgets:\n    _installed_url = None\n\n\n"
        "def enable_custom_widget_manager():\n    _widgets._installed_url = 'its manager'\n"
    )
    (tmp_path / "site" / "sitecustomize.py").write_text("import google.colab.output\n")
    shutil.copytree(mnist_dir, alone / "data")
    execute(shortened(notebook), alone, PYTHONPATH=str(tmp_path / "site"), **OFFLINE)
    check_outputs(notebook, epochs=4, accuracy=0.9)
    assert "not there" in text(notebook, "data")  # the bundled sample
    assert "part of MNIST: 4,000 digits" in text(notebook, "data")
    assert "trained above" in text(notebook, "yours")
    assert "The ink is found by a threshold" in text(notebook, "yours")
    [canvas] = outputs(notebook, "canvas")
    [metadata] = canvas.metadata.values()
    assert metadata == {"colab": {"custom_widget_manager": {"url": "its manager"}}}
    assert text(notebook, "files") == f"{', '.join(PACKED_FILES)}: written\n"
    assert text(notebook, "carry-model") == "model.py: written\n"
    for name in FILES:
        assert (alone / name).read_bytes() == (PROJECT_DIR / name).read_bytes()


def write_table(path, images, labels=None):
    names = [f"pixel{i}" for i in range(784)]
    rows = images.reshape(len(images), -1)
    if labels is not None:
        names, rows = ["label", *names], np.column_stack([labels, rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, rows, fmt="%d", delimiter=",", header=",".join(names), comments="")


@slow
def test_alone_as_on_kaggle_without_internet_and_widgets(notebook, alone, tmp_path):
    """It trains on the competition's table, writes a submission, and says what replaces drawing."""
    folder = tmp_path / "input" / "competitions" / "digit-recognizer"
    training, test = load_sample(train=True), load_sample(train=False)
    images = np.concatenate([test.images, test.images, training.images])  # 2,000 first: to test
    labels = np.concatenate([test.labels, test.labels, training.labels])
    write_table(folder / "train.csv", images, labels)
    write_table(folder / "test.csv", test.images.numpy())
    for cell in notebook.cells:
        cell.source = cell.source.replace("/kaggle/input", str(tmp_path / "input"))
    # Kaggle's image without the two packages.
    for name in ("anywidget", "ipywidgets"):
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / f"{name}.py").write_text(f"raise ImportError('no {name}')\n")
    site = str(tmp_path / "site")
    kaggle = {"PYTHONPATH": site, "KAGGLE_KERNEL_RUN_TYPE": "Interactive"}
    execute(shortened(notebook), alone, **kaggle, **OFFLINE)
    check_outputs(notebook, epochs=4, accuracy=0.9)
    assert "part of Kaggle's train.csv: 4,000 digits" in text(notebook, "data")
    assert "pip install anywidget" in text(notebook, "canvas")
    assert "set my_image" in text(notebook, "upload")
    header, *rows = (alone / "submission.csv").read_text().splitlines()
    assert header == "ImageId,Label"
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 1001))
    read = np.array([int(row.split(",")[1]) for row in rows])
    assert (read == test.labels.numpy()).mean() > 0.9


def test_a_file_of_the_user_is_kept_and_named(notebook, alone):
    """Even in a folder of the user's own that has the name of one of the project's."""
    (alone / "training").mkdir()
    (alone / "training" / "notes.txt").write_text("mine")
    (alone / "training" / "plots.py").write_text("print('mine too')\n")
    (alone / "model.py").write_text("print('mine')\n")
    shutil.copy(PROJECT_DIR / "train.py", alone)
    execute(up_to(notebook, "carry-model"), alone)
    kept = "there is another one here already; it is kept, and used"
    assert text(notebook, "carry-model") == f"model.py: {kept}\n"
    assert f"training/plots.py: {kept}\n" in text(notebook, "files")
    assert text(notebook, "files").startswith("train.py: here already\n")
    assert (alone / "training" / "plots.py").read_text() == "print('mine too')\n"
    assert (alone / "training" / "notes.txt").read_text() == "mine"
    assert (alone / "model.py").read_text() == "print('mine')\n"
    assert (alone / "training" / "data.py").exists()


def test_without_any_digits_it_says_what_to_do(notebook, alone):
    with pytest.raises(CellExecutionError, match="no digits: switch the internet on"):
        execute(up_to(notebook, "data"), alone, **OFFLINE)
