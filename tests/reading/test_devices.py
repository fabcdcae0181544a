"""devices.py: which device is chosen, and a faster network that computes the same function."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn

from model import MNISTClassifier
from reading.devices import choose_device, drop_bytes, speed_up


def same_weights(dropout: bool = False) -> tuple[MNISTClassifier, MNISTClassifier]:
    """Return a stock network and a fast one with its weights."""
    torch.manual_seed(0)
    stock = MNISTClassifier()
    fast = speed_up(copy.deepcopy(stock))
    for model in (stock, fast):
        if not dropout:
            model.dropout1.p = model.dropout2.p = 0.0
    return stock, fast


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("n", [5, 0])  # torchrun may leave a process no digits of a batch
def test_the_fast_network_has_the_stock_one_s_values_and_gradients(dtype, tolerance, n):
    found = []
    for model in same_weights():
        model.train()
        images = torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(1))
        images.requires_grad_()
        mixed = dtype == torch.bfloat16 and not found  # against float32
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            logits = model(images).float()
        logits.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        found.append([logits.detach(), images.grad, *gradients])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("n", [1, 31, 32, 100])
def test_the_fast_network_reads_as_the_stock_one(n):
    stock, fast = (model.eval() for model in same_weights())
    images = torch.randn(n, 1, 28, 28)
    with torch.inference_mode():
        torch.testing.assert_close(fast(images), stock(images))
    torch.testing.assert_close(fast(images), stock(images))  # with a gradient to come, too


def test_names_copies_and_pickles_are_those_of_the_stock_network():
    stock, fast = same_weights()
    assert isinstance(fast, MNISTClassifier)
    assert list(fast.state_dict()) == list(stock.state_dict())
    images = torch.randn(40, 1, 28, 28)
    with torch.inference_mode():
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), speed_up(fast)):
            assert type(other) is type(fast)
            assert torch.equal(other.eval()(images), fast.eval()(images))
    stock.load_state_dict(fast.state_dict())


def test_a_network_of_another_class_keeps_its_forward():
    class Blind(MNISTClassifier):
        def forward(self, images):
            return torch.zeros(len(images), 10)

    assert not speed_up(Blind())(torch.ones(2, 1, 28, 28)).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_trains_in_other_dtypes_and_compiled(dtype):
    model = speed_up(MNISTClassifier()).train().to(dtype)
    model(torch.randn(2, 1, 28, 28, dtype=dtype)).sum().backward()
    assert model.conv1.weight.grad.dtype == dtype
    # backend="eager" traces the network as any compilation would, and needs no compiler.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(torch.randn(2, 1, 28, 28, dtype=dtype)).shape == (2, 10)


def test_dropout_is_seeded_differs_between_steps_and_is_off_in_evaluation():
    dropout = nn.Dropout(0.25)
    x = torch.ones(7, 13)  # 91 values: no multiple of 8
    torch.manual_seed(1)
    first, second = drop_bytes(x, dropout), drop_bytes(x, dropout)
    torch.manual_seed(1)
    assert torch.equal(drop_bytes(x, dropout), first)
    assert not torch.equal(first, second)
    dropout.eval()
    assert drop_bytes(x, dropout) is x


@pytest.mark.parametrize("p", [0.0, 0.001, 0.5, 1.0])
def test_dropout_is_right_for_every_probability(p):
    x = torch.ones(1_000_000)
    torch.manual_seed(0)
    y = drop_bytes(x, nn.Dropout(p))
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=1.5e-3)
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)) if p < 1 else kept)


def test_a_device_that_is_not_there_is_a_value_error():
    assert choose_device("cpu") == "cpu"
    with pytest.raises(
        ValueError, match=r"device 'tpu' can't be used here \(.*\); use auto or cpu"
    ):
        choose_device("tpu")


def test_where_an_accelerator_fails_its_first_operation_auto_takes_the_cpu(monkeypatch, capsys):
    """As Kaggle's P100 does with a PyTorch that has no kernels for it."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert choose_device("auto") == "cpu"  # "meta" holds no values: .item() fails there
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "WARNING: meta fails (" in err
    assert "going on with the CPU" in err
    with pytest.raises(ValueError, match="device 'meta' can't be used here"):
        choose_device("meta")
