"""Where the network runs, and what makes it fast there: the same function, the same weights."""

import ctypes
import platform
import sys
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import MNISTClassifier

MIN_BLOCKED = 32  # images; fewer do not pay for the way to the blocked layout and back


def choose_device(name: str) -> str:
    """Return the name of a device that this machine has; "auto" prefers an accelerator.

    An accelerator may be there and fail its first operation, such as a GPU that this PyTorch has
    no kernels for. Then "auto" says so in one line, and takes the CPU. Raises ValueError if a
    device that was asked for by name can't be used.
    """
    automatic = name == "auto"
    if automatic:
        available = torch.accelerator.is_available()
        name = torch.accelerator.current_accelerator().type if available else "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the one line below says it all
            torch.ones(1, device=name).add(1).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:100]
        if not automatic:
            message = f"device {name!r} can't be used here ({reason}); use auto or cpu"
            raise ValueError(message) from None
        print(f"WARNING: {name} fails ({reason}); going on with the CPU", file=sys.stderr)
        return "cpu"
    return name


def computes_in_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16 natively; where it is emulated, float32 is faster."""
    if device == "cpu" and torch.backends.mkldnn.is_available():
        # An older PyTorch can't tell: float32 is always right, only slower.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.startswith("xpu") and torch.xpu.is_bf16_supported()


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory, up to 1 GB, for the next step of training.

    It would hand blocks as large as our activations back to the system after each step, and
    get them again page by page, zeroed: up to a sixth of the time of training in float32.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt:
            mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
            mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, at its greatest


def speed_up(model: MNISTClassifier) -> MNISTClassifier:
    """Let a network compute the same function faster; it is changed in place, and returned.

    The weights and their names stay as they are. benchmarks/train_speed.py measures what it gives.
    Hooks, tracing and second derivatives want the network of model.py as it is.
    """
    if type(model) is MNISTClassifier:  # another class has a forward of its own
        model.__class__ = FastClassifier  # copies and pickles stay fast, unlike a bound forward
    return model.to(memory_format=torch.channels_last)


class FastClassifier(MNISTClassifier):
    """MNISTClassifier, computed in another order, layout and with other random numbers.

    ReLU and max pooling commute, and pooling first leaves a quarter of the ReLU work. On a CPU,
    the convolutions hand on their output in oneDNN's blocked layout where that pays: in training,
    and for all but a few images where no gradient is wanted. There max pooling and its gradient
    are three times as fast: oneDNN keeps a byte for each maximum, PyTorch's own pooling an int64.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalized images, float (N, 1, 28, 28), to logits, float (N, 10)."""
        autocast = images.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else images.dtype
        pays = self.training or (not torch.is_grad_enabled() and len(images) >= MIN_BLOCKED)
        blocked = pays and images.device.type == "cpu" and has_blocked_layout(dtype)
        x = images.to_mkldnn(dtype) if blocked else images
        for conv in (self.conv1, self.conv2):
            x = convolve_blocked(conv, x) if blocked else conv(x)
            # The stride is written out: in the blocked layout the gradient fails without it.
            x = F.relu(F.max_pool2d(x, 2, 2))  # (N, 32, 14, 14), then (N, 64, 7, 7)
        x = x.to_dense() if blocked else x
        x = drop_bytes(x.flatten(1), self.dropout1)  # (N, 3136)
        x = F.relu(self.fc1(x))  # (N, 128)
        return self.fc2(drop_bytes(x, self.dropout2))  # (N, 10)


def has_blocked_layout(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels of its own for this dtype on this processor."""
    if torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
        return False
    if platform.machine() not in ("x86_64", "AMD64"):  # elsewhere its pooling may be a slow one
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def convolve_blocked(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Return conv(x), in the blocked layout, in which nn.Conv2d itself refuses bfloat16."""
    weight, bias = conv.weight.to(x.dtype), conv.bias.to(x.dtype)
    where = conv.padding, conv.stride, conv.dilation, conv.groups
    return torch.mkldnn_convolution(x, weight, bias, *where)


def drop_bytes(x: torch.Tensor, dropout: nn.Dropout) -> torch.Tensor:
    """Apply dropout (Srivastava et al. 2014), on a CPU by a random byte for each value.

    nn.Dropout draws a double there, which takes a sixth of this network's training step. A
    byte is exact for a probability in 256ths; for any other, this is nn.Dropout.
    """
    on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
    in_bytes = 256 * dropout.p % 1 == 0 and dropout.p < 1
    if not (dropout.training and on_cpu and in_bytes):
        return dropout(x)
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape).ge_(int(256 * dropout.p))
    return x * (keep.to(x.dtype) / (1 - dropout.p))  # ge_ gives bytes: no slow bool
