"""What this machine computes with."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """The CUDA card where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is emulated, slower than float32."""
    if device.type != "cpu":
        return True
    # the question itself is part of oneDNN, which not every build of torch has
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
