"""Convolution and dropout: the same functions as PyTorch's, trained faster on a CPU."""

import ctypes
import platform
import sys

import torch
import torch.nn as nn

LEAST_BLOCKED = 32  # images that pay for the way to the blocked layout and back


class Conv2d(nn.Conv2d):
    """nn.Conv2d, which on a CPU hands on its output in oneDNN's blocked layout where that pays.

    There max pooling and its gradient are three times as fast: oneDNN keeps a byte for each
    maximum, where PyTorch's own pooling keeps an int64. So while it trains; and where no
    gradient is wanted, for all but a few images. `to_dense` brings a tensor back.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        plain = x.dim() == 4 and self.bias is not None and self.padding_mode == "zeros"
        on_cpu = x.device.type == "cpu" and plain and not isinstance(self.padding, str)
        pays = self.training or (not torch.is_grad_enabled() and len(x) >= LEAST_BLOCKED)
        if not (pays and on_cpu and has_blocked_layout(dtype)):
            return super().forward(x)
        if not x.is_mkldnn:
            x = x.to_mkldnn(dtype)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        # What nn.Conv2d comes to, but for its check that refuses bfloat16 in this layout.
        return torch.mkldnn_convolution(
            x, weight, bias, self.padding, self.stride, self.dilation, self.groups
        )


def has_blocked_layout(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels of its own for this dtype on this processor."""
    if torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
        return False
    if platform.machine() not in ("x86_64", "AMD64"):  # elsewhere its pooling may be a slow one
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def to_dense(x: torch.Tensor) -> torch.Tensor:
    """Bring a tensor back from the blocked layout, if it is in that."""
    return x.to_dense() if x.is_mkldnn else x


class Dropout(nn.Dropout):
    """nn.Dropout (Srivastava et al. 2014), which on a CPU draws a random byte for each value.

    nn.Dropout draws a double there, which takes a sixth of this network's training step. A
    byte is exact for a probability in 256ths; for any other, this is nn.Dropout.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
        in_bytes = 256 * self.p % 1 == 0 and self.p < 1 and not self.inplace
        if not (self.training and on_cpu and in_bytes):
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape).ge_(int(256 * self.p))
        return x * (keep.to(x.dtype) / (1 - self.p))  # ge_ gives bytes: no slow bool


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


def computes_in_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16 natively; where it is emulated, float32 is faster."""
    if device == "cpu" and torch.backends.mkldnn.is_available():
        # An older PyTorch can't tell: float32 is always right, only slower.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.startswith("xpu") and torch.xpu.is_bf16_supported()
