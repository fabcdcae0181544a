"""model.py: the network, and the pixels it reads."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from model import MNISTClassifier, normalize
from training.data import load_mnist


def test_the_architecture_is_exact():
    shapes = {name: tuple(tensor.shape) for name, tensor in MNISTClassifier().named_parameters()}
    assert shapes == {
        "conv1.weight": (32, 1, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "fc1.weight": (128, 64 * 7 * 7),
        "fc1.bias": (128,),
        "fc2.weight": (10, 128),
        "fc2.bias": (10,),
    }
    assert sum(parameter.numel() for parameter in MNISTClassifier().parameters()) == 421_642


def test_its_layers_are_pytorch_s_own():
    kinds = {name: type(layer) for name, layer in MNISTClassifier().named_children()}
    assert kinds == {
        "conv1": nn.Conv2d,
        "conv2": nn.Conv2d,
        "dropout1": nn.Dropout,
        "fc1": nn.Linear,
        "dropout2": nn.Dropout,
        "fc2": nn.Linear,
    }


def test_the_network_computes_the_layers_in_the_order_of_the_readme():
    torch.manual_seed(0)
    model = MNISTClassifier().eval()
    images = torch.randn(3, 1, 28, 28)
    x = F.max_pool2d(F.relu(F.conv2d(images, model.conv1.weight, model.conv1.bias, padding=1)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, model.conv2.weight, model.conv2.bias, padding=1)), 2)
    x = F.relu(F.linear(x.reshape(3, -1), model.fc1.weight, model.fc1.bias))
    expected = F.linear(x, model.fc2.weight, model.fc2.bias)
    torch.testing.assert_close(model(images), expected)


def test_dropout_is_25_percent_before_and_50_percent_after_the_first_linear_layer():
    model = MNISTClassifier().train()
    seen = {}
    for name in ("fc1", "fc2"):
        layer = getattr(model, name)
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
    nn.init.zeros_(model.conv2.weight)
    nn.init.ones_(model.conv2.bias)  # every value ahead of the first dropout is 1
    nn.init.zeros_(model.fc1.weight)
    nn.init.ones_(model.fc1.bias)  # and ahead of the second
    model(torch.randn(200, 1, 28, 28))
    for name, dropped in (("fc1", 0.25), ("fc2", 0.5)):
        values = seen[name]
        assert (values == 0).float().mean().item() == pytest.approx(dropped, abs=0.015)
        kept = values[values != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - dropped)))


def test_normalize_gives_the_training_set_mean_0_and_standard_deviation_1(mnist_dir):
    pixels = normalize(load_mnist(mnist_dir, train=True, download=False).images)
    assert pixels.mean().item() == pytest.approx(0, abs=1e-3)
    assert pixels.std().item() == pytest.approx(1, abs=1e-3)


def test_normalize_takes_both_shapes_and_keeps_its_input():
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    before = images.clone()
    result = normalize(images)
    assert result.shape == (5, 1, 28, 28)
    assert result.dtype == torch.float32
    assert torch.equal(normalize(images.unsqueeze(1)), result)
    assert torch.equal(normalize(images.float()), result)
    assert torch.equal(images, before)
    black, white = normalize(
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1).repeat(1, 28, 28)
    )
    assert black[0, 0, 0].item() == pytest.approx(-0.1307 / 0.3081, abs=1e-5)
    assert white[0, 0, 0].item() == pytest.approx((1 - 0.1307) / 0.3081, abs=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(28, 28, dtype=torch.uint8),
        torch.zeros(2, 3, 28, 28, dtype=torch.uint8),
        torch.zeros(2, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 28, 28, dtype=torch.int64),
    ],
)
def test_normalize_refuses_other_shapes_and_dtypes(images):
    with pytest.raises(ValueError, match=r"\(N, 28, 28\)|uint8"):
        normalize(images)
