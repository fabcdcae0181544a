"""What goes wrong around a run costs one clear line, and nothing that was there before."""

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import FEW_DRAWINGS, slow
from PIL import Image

import inference
import train
from apps import kaggle
from inference import MNISTPredictor
from reading.files import write_atomically
from training.data import MNIST_SHA256, PROJECT_DIR, load_mnist, load_sample
from training.runs import OUTPUTS


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    assert train.main(["--sample", "--dry-run", "--output-dir", str(folder)]) == 0
    return folder


# ---- Output folders -----------------------------------------------------------------------


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_disk_that_is_full_when_an_output_is_written(
    name, finished, tmp_path, monkeypatch, capsys, full_disk
):
    """The message names the output; what an earlier run left of it is intact."""
    folder = shutil.copytree(finished, tmp_path / "outputs")
    before = contents(folder)
    states = []

    def write_to_a_full_disk(path, content):
        """The first state fits: it is the second that does not, after an epoch."""
        is_state = os.path.basename(path) == "training_state.pt"
        if is_state and not states:
            states.append(content)
            before["training_state.pt"] = content
            full = contextlib.nullcontext()
        else:
            full = full_disk(100) if os.path.basename(path) == name else contextlib.nullcontext()
        with full:
            write_atomically(path, content)

    for module in ("reading.checkpoint", "training.plots", "train"):
        monkeypatch.setattr(f"{module}.write_atomically", write_to_a_full_disk)
    arguments = ["--sample", "--dry-run", "--seed", "1", "--output-dir", str(folder)]
    assert train.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(folder / name) in err
    after = contents(folder)
    assert after[name] == before[name]
    assert set(after) == set(before)


def test_an_output_folder_that_vanishes_is_one_line(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "outputs"
    epoch = train.Trainer.train_epoch

    def vanish(*arguments):
        shutil.rmtree(folder)
        return epoch(*arguments)

    monkeypatch.setattr(train.Trainer, "train_epoch", vanish)
    assert train.main(["--sample", "--dry-run", "--output-dir", str(folder)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(folder / "training_state.pt") in err


def test_a_loss_that_is_not_finite_leaves_what_was_saved(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "outputs")
    before = contents(folder)
    arguments = ["--sample", "--learning-rate", "1e6", "--epochs", "2"]
    assert train.main([*arguments, "--output-dir", str(folder)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the loss became" in err
    assert "lower the learning rate" in err
    after = contents(folder)
    del before["training_state.pt"], after["training_state.pt"]  # that of the new run
    assert after == before


# ---- Data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MNIST_SHA256))
def test_a_folder_or_another_file_in_the_place_of_a_file_of_mnist(
    name, tmp_path, capsys, mnist_dir
):
    raw_dir = shutil.copytree(mnist_dir / "MNIST" / "raw", tmp_path / "data" / "MNIST" / "raw")
    for path in raw_dir.glob("*-ubyte"):
        path.unlink()  # the .gz files are enough
    path = raw_dir / f"{name}.gz"
    arguments = ["--dry-run", "--data-dir", str(tmp_path / "data"), "--output-dir"]
    arguments += [str(tmp_path / "outputs")]
    others = [other for other in raw_dir.iterdir() if other != path]
    shutil.copy(others[0], path)  # swapped
    assert train.main(arguments) == 1
    swapped = capsys.readouterr().err
    path.unlink()
    path.mkdir()
    assert train.main(arguments) == 1
    folder = capsys.readouterr().err
    for err in (swapped, folder):
        assert err.count("\n") == 1
        assert str(path) in err


@slow
def test_two_downloads_into_the_same_folder_at_once_both_end_well(mnist_dir, tmp_path):
    served = mnist_dir / "MNIST" / "raw"
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(served)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        port = server.stdout.readline().split("port ")[1].split()[0]
        code = (
            "import sys, torchvision, train\n"
            f"torchvision.datasets.MNIST.mirrors = ['http://127.0.0.1:{port}/']\n"
            "sys.exit(train.main(['--dry-run', '--data-dir', sys.argv[1], '--output-dir', "
            "sys.argv[2]]))"
        )
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / "data"), str(tmp_path / str(i))],
                cwd=PROJECT_DIR,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]
        results = [(*run.communicate(), run.returncode) for run in runs]
        server.terminate()
    for out, err, code in results:
        assert code == 0, err
        assert "WARNING" not in err
        assert "dry run on a few digits of: MNIST\n" in out
    assert len(load_mnist(tmp_path / "data", train=True, download=False)) == 60_000
    assert not list((tmp_path / "data").rglob(".download-*"))


# ---- Memory and processes -----------------------------------------------------------------


@slow
def test_a_batch_of_all_digits_fits_in_memory(mnist_dir, tmp_path):
    command = [sys.executable, str(PROJECT_DIR / "train.py"), "--epochs", "1"]
    command += ["--batch-size", "60000", "--data-dir", str(mnist_dir), *FEW_DRAWINGS]
    with subprocess.Popen(
        [*command, "--output-dir", str(tmp_path)], stdout=subprocess.DEVNULL
    ) as run:
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0
    assert usage.ru_maxrss < 6_000_000  # kB


def test_large_batches_go_in_slices_to_the_same_gradient(monkeypatch):
    digits = load_sample(train=True)
    settings = train.Settings(
        epochs=1, batch_size=4000, augment=False, precision="float32", handwriting=0, non_digits=0
    )
    monkeypatch.setattr("reading.devices.drop_bytes", lambda x, _: x)  # draws by slice
    whole, _ = train.train(digits, load_sample(train=False), settings)
    monkeypatch.setattr(train, "MAX_SLICE", 700)
    sliced, _ = train.train(digits, load_sample(train=False), settings)
    for expected, parameter in zip(whole.parameters(), sliced.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)


def predict_in_child(predictor, images, queue):
    queue.put([prediction.digit for prediction in predictor.predict_batch(images)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_may_use_the_predictor_of_its_parent(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    predictor, images = MNISTPredictor(), load_sample(train=False).images.numpy()
    expected = [prediction.digit for prediction in predictor.predict_batch(images)]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=predict_in_child, args=(predictor, images, queue))
    child.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        child.kill()
        child.join()


@slow
def test_fifteen_thousand_images_are_read_in_bounded_memory(tmp_path):
    """A folder of folders, read by one process and by several."""
    digits = load_sample(train=False)
    files = []
    for i, image in enumerate(digits.images.numpy()):
        Image.fromarray(image).save(tmp_path / "original.png")
        content = (tmp_path / "original.png").read_bytes()
        for copy in range(15):
            folder = tmp_path / "images" / str(copy)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:04}.png").write_bytes(content)
            files.append(str(folder / f"{i:04}.png"))
    code = (
        "import sys, inference\n"
        "code = inference.main(sys.argv[1:])\n"
        "[line] = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "print(int(line.split()[1]) / 1000, file=sys.stderr)\n"  # MB, at the highest
        "sys.exit(code)"
    )

    def read(*arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        run = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_DIR)
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines(), float(run.stderr)

    _, least = read(files[0])
    lines, most = read(tmp_path / "images", "--guess", "--jobs", 4)
    assert len(lines) == 15_000
    assert most - least < 500, (most, least)  # MB
    answers = [(int(line.split(".png: ")[0][-4:]), line.split(".png: ")[1][0]) for line in lines]
    right = sum(int(read) == int(digits.labels[i]) for i, read in answers)
    assert right > 14_850
    print(f"\n15,000 images: {most - least:.0f} MB above the {least:.0f} MB of one image")
    (tmp_path / "list.txt").write_text("\n".join(files[:999]))
    alone, together = (read("--files-from", tmp_path / "list.txt", "--jobs", n)[0] for n in (1, 4))
    assert alone == together
    assert [line.split(": ")[0] for line in alone] == files[:999]


# ---- Names --------------------------------------------------------------------------------

HOSTILE = [
    "with space",
    'it\'s "quoted"',
    "new\nline",
    "$(touch owned)",
    "-rf",
    "x" * 240,
    "\udcff\udcfe not UTF-8",
    "..%2f..",
    "*[a]?",
    "\x1b[31mred",
]


@pytest.fixture
def hostile_folders(tmp_path):
    """A folder of each name, that has a seven of the same name in it."""
    Image.fromarray(load_sample(train=False).images[7].numpy()).save(tmp_path / "seven.png")
    folders = [tmp_path / "images" / name for name in HOSTILE]
    for folder in folders:
        folder.mkdir(parents=True)
        shutil.copy(tmp_path / "seven.png", folder / f"{folder.name}.png")
    return folders


def test_images_of_hostile_names_are_read_or_refused_by_name(hostile_folders, tmp_path):
    images = [str(folder / f"{folder.name}.png") for folder in hostile_folders]
    (tmp_path / "list.txt").write_bytes(b"\n".join(os.fsencode(i) for i in images if "\n" not in i))
    script = [sys.executable, str(PROJECT_DIR / "inference.py"), "--files-from"]
    script += [str(tmp_path / "list.txt"), *images, *map(str, hostile_folders)]
    done = subprocess.run(script, capture_output=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 3 * len(HOSTILE) - 1
    assert all(b".png: 7 (" in line and b"\x1b" not in line for line in lines)
    for image in images:
        with open(image, "wb") as file:
            file.write(b"no image")
    done = subprocess.run(script, capture_output=True, cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert len(lines) == 3 * len(HOSTILE) - 1
    assert all(b"not an image that can be read" in line for line in lines)
    assert not (tmp_path / "owned").exists()


def test_a_name_that_the_terminal_cannot_show_does_not_end_the_batch(tmp_path):
    names = ["sieben é.png", "七.png", "z.png"]
    for name in names:
        Image.fromarray(load_sample(train=False).images[7].numpy()).save(tmp_path / name)
    (tmp_path / "kein Bild é.png").write_bytes(b"no image")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    script = [sys.executable, str(PROJECT_DIR / "inference.py"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, env=environment)
    lines = done.stdout.decode("ascii").splitlines()
    assert done.returncode == 1
    assert len(lines) == 3
    assert all(": 7 (" in line for line in lines)
    assert r"sieben \xe9.png" in done.stdout.decode("ascii")
    assert done.stderr.count(b"\n") == 1
    assert rb"kein Bild \xe9.png: not an image" in done.stderr


def test_folders_and_tables_of_hostile_names_are_written_or_refused_by_name(
    hostile_folders, tmp_path, capfd
):
    seven = str(tmp_path / "seven.png")
    for folder in hostile_folders:
        table, submission = folder / "test.csv", folder / "out.csv"
        table.write_text("no table")
        assert kaggle.main([str(table), str(submission)]) == 1
        assert inference.main([seven, "--checkpoint", str(folder / "none.pt")]) == 1
        assert inference.main([seven, "--save-preprocessed", str(folder / "saved.png")]) == 0
        assert (folder / "saved.png").exists()
    for line in capfd.readouterr().err.splitlines():
        assert line.startswith(("inference.py: error: ", "kaggle.py: error: ")), line
    for folder in hostile_folders[6:7]:  # its name is not UTF-8
        assert train.main(["--sample", "--dry-run", "--output-dir", str(folder)]) == 0
        assert (folder / "mnist_cnn.pt").exists()


@pytest.mark.parametrize("name", ["x" * 256, "a\0b"])
def test_names_that_no_file_can_have_are_refused_in_one_line(name, tmp_path, capsys):
    assert inference.main([str(tmp_path / name / "a.png")]) == 1
    assert train.main(["--sample", "--dry-run", "--output-dir", str(tmp_path / name)]) == 1
    assert capsys.readouterr().err.count("\n") == 2


# ---- Files and streams that are none ------------------------------------------------------


def test_pipes_are_no_images_closed_streams_and_stdin_are_fine(tmp_path):
    """In one process: it would wait forever for what never comes through a pipe."""
    Image.fromarray(load_sample(train=False).images[7].numpy()).save(tmp_path / "seven.png")
    os.mkfifo(tmp_path / "a.png")
    code = (
        "import sys, inference\n"
        "codes = [inference.main(['.']), inference.main(['x.png', '--checkpoint', 'a.png'])]\n"
        "sys.exit(codes != [1, 1] or inference.main(['-', '--json']))"
    )
    command = f'{sys.executable} -c "$CODE" < seven.png'
    environment = os.environ | {"CODE": code, "PYTHONPATH": str(PROJECT_DIR)}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "timeout": 60}
    done = subprocess.run(["bash", "-c", command], **options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"Not a regular file: ") == done.stderr.count(b"\n") == 2
    assert done.stdout.startswith(b"./seven.png: 7 (")
    assert b'"file": "-", "digit": 7' in done.stdout
    silent = subprocess.run(["bash", "-c", command + " 2>&-"], **options)
    assert silent.returncode == 0
    assert silent.stdout == done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_error_while_reading_names_the_file(tmp_path, capsys):
    bad = "/proc/self/mem"  # opens, and can't be read
    for main, arguments in (
        (inference.main, [bad]),
        (inference.main, ["--files-from", bad]),
        (inference.main, ["a.png", "--checkpoint", bad]),
        (kaggle.main, [bad, str(tmp_path / "out.csv")]),
    ):
        assert main(arguments) == 1
        assert capsys.readouterr().err.endswith(f"Input/output error: '{bad}'\n")


@pytest.mark.parametrize("option", ["--save-preprocessed", "--checkpoint"])
def test_an_empty_name_is_refused(option, capsys):
    with pytest.raises(SystemExit) as caught:
        inference.main(["a.png", option, ""])
    assert caught.value.code == 2
    assert "must not be empty" in capsys.readouterr().err
