"""model.py and layers.py: the network, the pixels it reads, and what makes it train fast."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from model import MNISTClassifier, normalize
from reading.devices import Conv2d, Dropout, to_dense
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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_network_computes_the_layers_in_the_order_of_the_readme(memory_format):
    torch.manual_seed(0)
    model = MNISTClassifier().eval().to(memory_format=memory_format)
    images = torch.randn(3, 1, 28, 28)
    x = F.max_pool2d(F.relu(F.conv2d(images, model.conv1.weight, model.conv1.bias, padding=1)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, model.conv2.weight, model.conv2.bias, padding=1)), 2)
    x = F.relu(F.linear(x.reshape(3, -1), model.fc1.weight, model.fc1.bias))
    expected = F.linear(x, model.fc2.weight, model.fc2.bias)
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("n", [5, 0])  # torchrun may leave a process no digits of a batch
def test_in_training_it_computes_the_same_layers_and_their_gradients(dtype, tolerance, n):
    torch.manual_seed(0)
    model = MNISTClassifier().train().to(memory_format=torch.channels_last)
    model.dropout1.p = model.dropout2.p = 0.0
    images = torch.randn(n, 1, 28, 28, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(images)
    logits.float().square().sum().backward()
    found = [logits.float(), images.grad, *(parameter.grad for parameter in model.parameters())]

    plain, images = MNISTClassifier(), images.detach().clone().requires_grad_()
    plain.load_state_dict(model.state_dict())
    x = F.max_pool2d(F.relu(F.conv2d(images, plain.conv1.weight, plain.conv1.bias, padding=1)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, plain.conv2.weight, plain.conv2.bias, padding=1)), 2)
    logits = plain.fc2(F.relu(plain.fc1(x.reshape(n, 64 * 7 * 7))))
    logits.square().sum().backward()
    expected = [logits, images.grad, *(parameter.grad for parameter in plain.parameters())]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_trains_in_other_dtypes_and_compiled(dtype):
    model = MNISTClassifier().train().to(dtype)
    model(torch.randn(2, 1, 28, 28, dtype=dtype)).sum().backward()
    assert model.conv1.weight.grad.dtype == dtype
    # backend="eager" traces the network as any compilation would, and needs no compiler.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(torch.randn(2, 1, 28, 28, dtype=dtype)).shape == (2, 10)


@pytest.mark.parametrize(
    "options", [{"padding_mode": "reflect", "padding": 1}, {"bias": False}, {"padding": "same"}]
)
def test_a_convolution_with_other_options_computes_what_pytorch_s_does(options):
    torch.manual_seed(0)
    ours, theirs = Conv2d(1, 4, 3, **options), nn.Conv2d(1, 4, 3, **options)
    theirs.load_state_dict(ours.state_dict())
    for x in (torch.randn(2, 1, 8, 8), torch.randn(1, 8, 8)):
        torch.testing.assert_close(to_dense(ours(x)), theirs(x))


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


def test_dropout_is_seeded_differs_between_steps_and_is_off_in_evaluation():
    dropout = Dropout(0.25)
    x = torch.ones(7, 13)  # 91 values: no multiple of 8
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    dropout.eval()
    assert dropout(x) is x


@pytest.mark.parametrize("p", [0.0, 0.001, 0.1, 0.5, 0.999, 1.0])
def test_dropout_is_right_for_every_probability(p):
    x = torch.ones(1_000_000)
    torch.manual_seed(0)
    y = Dropout(p)(x)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=1.5e-3)
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)) if p < 1 else kept)
    inplace = Dropout(p, inplace=True)
    assert inplace(x) is x


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
