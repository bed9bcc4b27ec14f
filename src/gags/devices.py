"""What this machine computes with."""

from __future__ import annotations

import torch

# fmt: off
_VECTOR_MATH = (
    "acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2", "sin", "sqrt",
    "tan", "tanh",
)
# fmt: on


def best_device() -> torch.device:
    """The CUDA card where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is emulated, slower than float32."""
    if device.type != "cpu":
        return True
    # the question itself is part of oneDNN, which not every build of torch has
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _choose_vector_math() -> None:
    """Have MKL choose its kernels for this processor, by one thread.

    It does so at the first call of each function. Where threads make that call together, one of them may take a kernel
    of low accuracy for its share of it (pytorch/pytorch#188792: MKL before 2025.0, which torch's x86 wheels have), and now
    and then a run ends with other bytes than the rest.
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for name in _VECTOR_MATH:
            getattr(torch, name)(one)


_choose_vector_math()
