"""train.py: training, evaluation, the files it writes, and its command line."""

import dataclasses
import gc
import json
import math
import os
import signal
import struct
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

import train
from model import normalize
from reading.checkpoint import load_checkpoint, load_content, save_checkpoint
from train import Settings, Trainer, evaluate
from training import data, runs
from training.data import LAST_STRENGTH, PROJECT_DIR, Digits, load_mnist, load_sample
from training.lines import CUT
from training.synthetic import NON_DIGIT, draw_handwriting, draw_non_digits

OUTPUTS = ["confusion_matrix.png", "history.json", "history.png", "mistakes.png", "mnist_cnn.pt"]
OUTPUTS += ["training_state.pt"]


def run(*arguments, cwd=PROJECT_DIR, **options) -> subprocess.CompletedProcess:
    """Run train.py as a user would, in a process of its own."""
    command = [sys.executable, str(PROJECT_DIR / "train.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)


def written(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def weights_of(model) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


# ---- Training and evaluation --------------------------------------------------------------


def test_training_on_the_sample_learns(trained):
    model, history = trained
    assert history["rows"][-1]["test_accuracy"] > 0.95
    losses = [row["train_loss"] for row in history["rows"]]
    assert losses == sorted(losses, reverse=True)
    assert not model.training


def test_a_third_of_mnist_shown_once_is_enough_to_read_95_percent(mnist_dir):
    digits, test = (load_mnist(mnist_dir, train=split, download=False) for split in (True, False))
    _, history = train.train(digits[:20_000], test, Settings(epochs=1, batch_size=128))
    assert history["rows"][0]["test_accuracy"] > 0.95


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    training, test = load_sample(True)[:1000], load_sample(False)[:100]
    runs = [train.train(training, test, Settings(epochs=2, seed=seed)) for seed in (3, 3, 4)]
    first, second, other = (weights_of(model) for model, _ in runs)
    assert first == second
    assert first != other
    losses = [[row["test_loss"] for row in history["rows"]] for _, history in runs]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "settings", [{"precision": "float32"}, {"augment": False}, {"momentum": 0.0}]
)
def test_every_variant_of_training_learns(settings):
    digits = load_sample(True), load_sample(False)
    _, history = train.train(*digits, Settings(epochs=1, batch_size=32, **settings))
    assert history["rows"][0]["test_accuracy"] > 0.7


def test_drawings_join_the_training_digits_as_a_share_of_them():
    digits = load_sample(True)[:200]
    none, some, same, other = (
        Trainer(digits, Settings(handwriting=share, non_digits=share / 2, seed=seed)).digits
        for share, seed in ((0, 0), (0.2, 0), (0.2, 0), (0.2, 1))
    )
    assert torch.equal(none.images, digits.images)
    assert len(some) == 260
    assert torch.equal(some.images[:200], digits.images)
    assert torch.equal(some.images, same.images)
    for part in (slice(200, 240), slice(240, 260)):
        assert not torch.equal(some.images[part], other.images[part])
    n_drawn = 40 - round(CUT * 40)
    assert torch.equal(some.labels[200 : 200 + n_drawn], draw_handwriting(n_drawn, seed=0)[1])
    assert (some.labels[200 + n_drawn : 240] < NON_DIGIT).all()
    assert (some.labels[240:] == NON_DIGIT).all()


def test_a_step_follows_cross_entropy_in_which_non_digits_are_uniform_and_count_a_quarter():
    digits = load_sample(True)[:64]
    run = Trainer(digits, Settings(learning_rate=1e-9, precision="float32"))
    run.model.eval()  # no dropout
    images, labels = normalize(digits.images), digits.labels.clone()
    labels[40:] = NON_DIGIT
    reported = run.train_step(images, labels, 64).item()
    found = run.model.fc2.bias.grad.clone()
    run.model.zero_grad()
    log_probabilities = run.model(images).log_softmax(1)
    known = F.nll_loss(log_probabilities[:40], labels[:40], reduction="sum")
    ((known - log_probabilities[40:].mean(1).sum() / 4) / 64).backward()
    torch.testing.assert_close(found, run.model.fc2.bias.grad)
    assert reported == pytest.approx(known.item(), rel=1e-4)  # comparable with the test loss


def test_the_training_loss_is_the_mean_of_the_digits_alone():
    """As the test loss is: it is the same where nothing is distorted, dropped or learned."""
    digits = load_sample(True)[:200]
    run = Trainer(digits, Settings(learning_rate=1e-12, augment=False, handwriting=0, epochs=1))
    run.model.dropout1.p = run.model.dropout2.p = 0.0
    [row] = run.iter_epochs(digits)
    assert row["train_loss"] == pytest.approx(row["test_loss"], rel=1e-2)  # bfloat16


def test_a_network_that_was_shown_non_digits_is_unsure_of_them(trained):
    model, history = trained
    test = load_sample(False)
    none = draw_non_digits(500, 1)
    known, unknown = (
        evaluate(model, Digits(images, torch.zeros(len(images), dtype=torch.long)))
        .probabilities.amax(dim=1)
        .numpy()
        for images in (test.images, none)
    )
    assert (known[:, None] > unknown).mean() > 0.95  # the area under the ROC curve
    assert unknown.mean() < 0.6
    assert (known >= history["min_confidence"]).mean() > 0.98
    assert (unknown < history["min_confidence"]).mean() > 0.3


def test_weight_decay_spares_the_biases():
    run = Trainer(load_sample(True)[:20], Settings(weight_decay=0.1))
    model, groups = run.model, run.optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        name: 0.0 if name.endswith("bias") else 0.1 for name, _ in model.named_parameters()
    }


def test_the_schedule_warms_up_and_ends_near_zero():
    rates = [train.schedule((step - 0.5) / 1000) for step in range(1, 1001)]
    assert 0 < rates[0] < 0.01
    assert max(rates) == pytest.approx(1.0, abs=1e-4)
    assert rates.index(max(rates)) == pytest.approx(150, abs=2)
    assert 0 < rates[-1] < 1e-5


def test_a_run_of_a_single_step_learns():
    digits = load_sample(True)[:500]
    run = Trainer(digits, Settings(epochs=1, batch_size=500, handwriting=0, non_digits=0))
    before = weights_of(run.model)
    [row] = run.iter_epochs(digits)
    assert row["learning_rate"] > 0.01
    assert weights_of(run.model) != before


def test_evaluation_counts_right_takes_no_random_numbers_and_keeps_the_mode(trained):
    model, history = trained
    test = load_sample(False)
    state = torch.get_rng_state()
    model.train()
    result = evaluate(model, test)
    assert model.training
    model.eval()
    assert torch.equal(torch.get_rng_state(), state)
    read = result.probabilities.argmax(dim=1)
    assert result.misses == int((read != test.labels).sum()) == history["rows"][-1]["misses"]
    assert result.accuracy == pytest.approx(1 - result.misses / 1000)
    own = result.probabilities[torch.arange(1000), test.labels]
    assert result.loss == pytest.approx(-own.log().mean().item(), rel=1e-4)


def test_a_run_can_be_held_and_gone_through_epoch_by_epoch(capfd):
    digits, settings = load_sample(True)[:300], Settings(epochs=2, batch_size=128)
    run = Trainer(digits, settings)
    rows = []
    for row in run.iter_epochs(digits):
        rows.append(row)
        assert run.history["rows"] == rows
        assert not run.average.training
    assert [row["epoch"] for row in rows] == [1, 2]
    assert capfd.readouterr() == ("", "")  # who holds the run says what is said of it
    model, history = train.train(digits, digits, settings)
    assert weights_of(model) == weights_of(run.average)
    assert [row["test_loss"] for row in history["rows"]] == [row["test_loss"] for row in rows]


def test_a_run_goes_on_from_the_state_of_another():
    digits, settings = load_sample(True)[:300], Settings(epochs=3, batch_size=128)
    whole, first, second = (Trainer(digits, settings) for _ in range(3))
    list(whole.iter_epochs(digits))
    next(first.iter_epochs(digits))
    second.load_state_dict(first.state_dict())
    assert [row["epoch"] for row in second.iter_epochs(digits)] == [2, 3]
    assert weights_of(second.average) == weights_of(whole.average)
    other = Trainer(digits, Settings(epochs=3, batch_size=128, seed=1))
    with pytest.raises(ValueError, match="seed 0 in the state, 1 here"):
        other.load_state_dict(first.state_dict())


def test_a_loss_that_is_not_finite_stops_the_training():
    few = load_sample(True)[:640]
    with pytest.raises(ValueError, match=r"loss became .*lower the learning rate"):
        train.train(few, few, Settings(epochs=5, learning_rate=1e6, batch_size=16))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", -1),
        ("learning_rate", math.nan),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("handwriting", 1.5),
        ("non_digits", -0.1),
        ("seed", -1),
        ("device", "tpu"),
        ("precision", "int8"),
    ],
)
def test_settings_out_of_range_are_value_errors(name, value):
    with pytest.raises(ValueError, match=name.replace("_", " ")):
        Settings(**{name: value})


def test_the_distortion_fades_from_the_first_step_to_the_last(monkeypatch):
    shown, strengths = load_sample(False), []
    augment = data.augment

    def recording(images, generator, strength):
        strengths.append(strength)
        return augment(images, generator, strength)

    monkeypatch.setattr(data, "augment", recording)
    train.train(shown, shown, Settings(epochs=2, batch_size=250, handwriting=0, non_digits=0))
    assert len(strengths) == 8
    assert strengths == sorted(strengths, reverse=True)
    whole = math.sqrt(2) / 2  # of two epochs
    assert strengths[0] == pytest.approx(whole * (1 - (1 - LAST_STRENGTH) / 16))
    assert strengths[-1] == pytest.approx(whole * (LAST_STRENGTH + (1 - LAST_STRENGTH) / 16))


def test_a_short_run_takes_smaller_batches_at_a_lower_rate_unless_it_is_told_otherwise():
    digits = load_sample(True)[:200]
    chosen = Trainer(digits, Settings(epochs=300, handwriting=0, non_digits=0)).settings
    assert (chosen.batch_size, chosen.learning_rate) == (60, pytest.approx(0.1 * (60 / 256) ** 0.5))
    long = Trainer(digits, Settings(epochs=5000, handwriting=0, non_digits=0)).settings
    assert (long.batch_size, long.learning_rate) == (256, 0.1)
    told = Trainer(digits, Settings(epochs=1, batch_size=100, learning_rate=0.3))
    assert told.settings == Settings(epochs=1, batch_size=100, learning_rate=0.3)
    assert told.history["settings"]["batch_size"] == 100


# ---- The command line ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run of the command line, with settings of its own, from another folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    done = run(
        *("--sample", "--epochs", 2, "--batch-size", 64, "--learning-rate", 0.02),
        *("--momentum", 0.8, "--weight-decay", 0.001, "--seed", 7, "--no-augment"),
        *("--handwriting", 0.05, "--non-digits", 0.1),
        *("--device", "cpu", "--precision", "float32", "--output-dir", "results"),
        cwd=folder,
    )
    return folder / "results", done


def test_a_run_writes_its_files_and_says_where(finished):
    output_dir, done = finished
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where stderr is no terminal
    assert written(output_dir) == OUTPUTS
    for name in OUTPUTS:
        if name.endswith(".png"):
            with Image.open(output_dir / name) as picture:
                assert min(picture.size) > 300
                assert len(picture.convert("RGB").getcolors(1 << 20)) > 20  # something is drawn


def test_a_run_says_in_plain_words_what_it_does(finished):
    lines = finished[1].stdout.splitlines()
    assert lines[0] == "data        bundled sample of MNIST"
    assert lines[1] == "digits      4,000 to train on, 1,000 to test on"
    assert lines[2] == "drawings    200 of ways of writing that MNIST lacks, 400 of non-digits"
    assert lines[3] == "parameters  421,642"
    assert lines[4].startswith("processes   1, with ")
    assert lines[5] == (
        "settings    epochs 2, batch size 64, learning rate 0.02, momentum 0.8, "
        "weight decay 0.001, handwriting 0.05, non digits 0.1, seed 7, device cpu, "
        "precision float32, augment False"
    )
    header, first, second = lines[7:10]
    assert " ".join(header.split()) == (
        "epoch learning rate train loss test loss accuracy misses images/s seconds"
    )
    assert len(header) == len(first) == len(second)
    assert first.split()[0] == "1/2"


def test_the_last_lines_of_a_run_are_python_that_works(finished, tmp_path):
    output_dir, done = finished
    code = "\n".join(done.stdout.splitlines()[-2:])
    assert "MNISTPredictor" in code
    image = Image.fromarray(load_sample(False).images[3].numpy())  # a 3
    image.save(tmp_path / "digit.png")
    code = "\n".join(line.strip() for line in code.splitlines())
    if not os.path.isabs(code.split("'")[1]):
        code = code.replace(code.split("'")[1], str(output_dir / "mnist_cnn.pt"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT_DIR)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("Prediction(digit=3,"), done.stderr


def test_the_history_holds_every_number_and_the_checkpoint_says_what_it_is(finished):
    output_dir, done = finished
    history = json.loads((output_dir / "history.json").read_text())
    assert history["data"] == "bundled sample of MNIST"
    expected = {"epochs": 2, "batch_size": 64, "learning_rate": 0.02, "momentum": 0.8}
    expected |= {"weight_decay": 0.001, "handwriting": 0.05, "non_digits": 0.1}
    expected |= {"seed": 7, "augment": False}
    assert history["settings"] == expected | {"device": "cpu", "precision": "float32"}
    assert torch.__version__.startswith(history["versions"]["torch"])
    assert [row["epoch"] for row in history["rows"]] == [1, 2]
    last = history["rows"][-1]
    assert f"{last['test_accuracy']:.2%}" in done.stdout

    model, metadata = load_checkpoint(output_dir / "mnist_cnn.pt")
    assert metadata["data"] == history["data"]
    assert metadata["settings"] == history["settings"]
    assert 0.1 < metadata["min_confidence"] == history["min_confidence"] < 1
    assert metadata["epochs_finished"] == 2
    assert metadata["command"] == history["command"]
    assert metadata["command"].startswith("python train.py --epochs 2 --batch-size 64 ")
    arguments, settings = train.parse_arguments(metadata["command"].split()[2:])
    assert arguments.sample
    assert dataclasses.asdict(settings) == metadata["settings"]
    assert metadata["result"]["misses"] == last["misses"]
    assert evaluate(model, load_sample(False)).misses == last["misses"]


def test_the_same_command_gives_the_same_file(tmp_path):
    arguments = ("--sample", "--dry-run", "--output-dir")
    for name in ("a", "b"):
        assert train.main([*arguments, str(tmp_path / name)]) == 0
    assert (tmp_path / "a/mnist_cnn.pt").read_bytes() == (tmp_path / "b/mnist_cnn.pt").read_bytes()


def test_a_dry_run_on_mnist_writes_all_files_and_says_so(mnist_dir, tmp_path, capsys):
    arguments = ["--dry-run", "--data-dir", str(mnist_dir), "--output-dir", str(tmp_path)]
    assert train.main(arguments) == 0
    assert written(tmp_path) == OUTPUTS
    assert "data        dry run on a few digits of: MNIST\n" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "mnist_cnn.pt")[1]["data"].startswith("dry run")


def test_without_mnist_it_trains_on_the_sample_and_every_output_says_so(tmp_path):
    # A proxy that refuses every connection: nothing can be downloaded, wherever this runs.
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = run(
        *("--dry-run", "--data-dir", tmp_path / "data", "--output-dir", tmp_path / "out"),
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING: MNIST could not be downloaded" in done.stderr
    assert "WARNING: training on the 5,000 bundled digits" in done.stderr
    assert "Traceback" not in done.stderr
    name = "bundled sample of MNIST, since MNIST could not be downloaded"
    assert name in done.stdout.splitlines()[0]
    assert f"test digits of dry run on a few digits of: {name}" in done.stdout
    assert json.loads((tmp_path / "out/history.json").read_text())["data"].endswith(name)
    assert load_checkpoint(tmp_path / "out/mnist_cnn.pt")[1]["data"].endswith(name)


def test_the_data_is_named_in_every_plot(monkeypatch, tmp_path):
    named = []
    original = train.save_figure
    monkeypatch.setattr(
        train,
        "save_figure",
        lambda path, figure, data: named.append((original(path, figure, data), figure)),
    )
    assert train.main(["--sample", "--dry-run", "--output-dir", str(tmp_path)]) == 0
    assert [figure.get_supxlabel() for _, figure in named] == [
        "data: dry run on a few digits of: bundled sample of MNIST"
    ] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "-1"], "batch size must be in 0..1000000, not -1"),
        (["--epochs", "-1"], "epochs must be in 1..1000000, not -1"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--learning-rate", "-1"], "learning rate must be in 0..1000000, not -1.0"),
        (["--learning-rate", "nan"], "learning rate must be in"),
        (["--momentum", "1"], "momentum must be"),
        (["--weight-decay", "1e30"], "weight decay must be in 0..1"),
        (["--batch-size", "9" * 20], "batch size must be in 0..1000000, not 999"),
        (["--output-dir", ""], "--output-dir: the name of a folder must not be empty"),
        (["--device", "mkldnn"], "device 'mkldnn'"),
        (["--seed", "-1"], "seed must be"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--precision", "int8"], "precision must be auto, float32 or bfloat16, not 'int8'"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    ],
)
def test_bad_arguments_are_refused_with_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("env", [{"WORLD_SIZE": "0"}, {"RANK": "1"}])
def test_half_a_group_is_one_line(env, monkeypatch, tmp_path, capsys):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert train.main(["--sample", "--output-dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == err.count("RANK is ") == 1


def test_help_names_every_setting_with_its_default_and_no_machine_s_folders(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in out
        assert field.metadata["help"] in out
    for default in ("[25]", "[0]", "[0.3]", "[True]", "[data]", "[outputs]"):
        assert default in out
    assert "default:" not in out
    assert str(PROJECT_DIR) not in out


def test_augment_can_be_asked_for_and_refused():
    assert train.parse_arguments(["--augment"])[1].augment
    assert not train.parse_arguments(["--no-augment"])[1].augment


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused_with_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--device", "cuda"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_model_of_mnist_is_not_replaced_by_one_of_the_sample(
    tmp_path, trained, monkeypatch, capsys, request
):
    model, history = trained
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    folder = tmp_path / "outputs"
    folder.mkdir()
    save_checkpoint(folder / "mnist_cnn.pt", model, history | {"data": "MNIST"})
    before = (folder / "mnist_cnn.pt").read_bytes()
    arguments = ["--dry-run", "--data-dir", str(tmp_path / "data"), "--output-dir"]
    gc.disable()  # the folder is free again at once, not when garbage is collected
    request.addfinalizer(gc.enable)
    assert train.main([*arguments, str(folder)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{folder / 'mnist_cnn.pt'}: was trained on MNIST, and is kept" in last
    assert "choose another --output-dir" in last
    assert (folder / "mnist_cnn.pt").read_bytes() == before
    assert train.main([*arguments, str(tmp_path / "another")]) == 0
    assert train.main([*arguments, str(folder), "--sample"]) == 0  # since that was asked for


def test_damaged_data_is_one_line_and_exit_code_1(tmp_path, capsys):
    raw_dir = tmp_path / "MNIST" / "raw"
    raw_dir.mkdir(parents=True)
    (raw_dir / "train-images-idx3-ubyte").write_bytes(b"cut short")
    arguments = ["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert train.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "train-images-idx3-ubyte: damaged" in err
    assert "delete it" in err


def test_an_output_folder_that_is_a_file_is_said_before_training(tmp_path, capsys):
    path = tmp_path / "outputs"
    path.write_text("mine")
    assert train.main(["--sample", "--output-dir", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""  # training has not begun
    assert err.count("\n") == 1
    assert f"{path}: can't write there" in err
    assert path.read_text() == "mine"


def test_a_folder_where_an_output_goes_is_said_before_training(tmp_path, capsys):
    for name in runs.OUTPUTS:
        (tmp_path / name).mkdir()
        assert train.main(["--sample", "--output-dir", str(tmp_path)]) == 1
        (tmp_path / name).rmdir()
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert f"{tmp_path / name}: a folder, where a file goes" in err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_an_unwritable_output_folder_is_said_before_training(tmp_path, capsys):
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write anywhere, nobody may not
    try:
        assert train.main(["--sample", "--output-dir", str(tmp_path)]) == 1
    finally:
        os.seteuid(user)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"{tmp_path}: can't write there (Permission denied)" in err


def test_a_full_disk_is_said_before_training_and_nothing_is_lost(tmp_path, capsys, full_disk):
    (tmp_path / "mnist_cnn.pt").write_bytes(b"the last model")
    with full_disk(1_000_000):
        assert train.main(["--sample", "--output-dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""  # training has not begun
    assert err.count("\n") == 1
    assert str(tmp_path / "training_state.pt") in err
    assert (tmp_path / "mnist_cnn.pt").read_bytes() == b"the last model"
    assert written(tmp_path) == ["mnist_cnn.pt"]


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to another process on Windows")
def test_ctrl_c_says_how_to_go_on_and_keeps_a_model_that_was_there(tmp_path):
    model = tmp_path / "mnist_cnn.pt"
    model.write_bytes(b"a finished model")
    command = [sys.executable, str(PROJECT_DIR / "train.py"), "--sample", "--epochs", "30"]
    process = subprocess.Popen(
        [*command, "--output-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.strip().startswith("3/30"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == (
        "train.py: interrupted; if a run had begun, the same command with --resume goes on after "
        "its last epoch\n"
    )
    assert model.read_bytes() == b"a finished model"
    assert written(tmp_path) == ["mnist_cnn.pt", "training_state.pt"]
    state = load_content(tmp_path / "training_state.pt", runs.STATE_FORMAT)
    assert len(state["history"]["rows"]) >= 2


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_progress_bar_is_shown_on_a_terminal():
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    code = (
        "import train; from training import data; few = data.load_sample(True)[:640];"
        "train.train(few, few, train.Settings(epochs=1, batch_size=8))"
    )
    done = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT_DIR, stderr=theirs, stdout=subprocess.DEVNULL
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
    os.close(ours)
    assert done.wait() == 0
    assert b"/124 [" in shown
