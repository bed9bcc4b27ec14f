"""gsplat's CUDA kernels: the only importer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gags.errors import GagsError


def rasterization(means: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """``gsplat.rasterization`` with the same arguments; call it with CUDA tensors only.

    On a machine without CUDA gsplat's import of its kernels fails and leaves a build folder behind, so nothing here is
    tried first and caught: the caller looks at the tensors' device.
    """
    if not means.is_cuda:
        raise GagsError(
            f"gsplat: expected CUDA tensors, found {means.device}; move them to the GPU or use the CPU kernels"
        )
    import gsplat

    return gsplat.rasterization(means, *arguments, **options)
