"""x W + b on the fastest kernel that torch has for it.

The only place that calls a private operator of torch: `torch.ops.mkldnn._linear_pointwise`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# With fewer weights, preparing a kernel for a new shape takes longer than the kernel saves.
_LARGE = 1 << 18
_FEW = range(2, 33)  # rows


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, in), weight (in, out), bias (out,) -> (…, out).

    Without gradients, float32 on a CPU may use oneDNN, through the operator that torch's own
    compiler calls. Eager torch uses MKL, which on processors that are not Intel's is about half as
    fast; on Intel's it is faster, except for a few rows (benchmarks/RESULTS.md).
    """
    if (
        _ONEDNN
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and weight.numel() >= _LARGE
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and (not _on_intel() or x.numel() // x.shape[-1] in _FEW)
    ):
        return _onednn(x, weight, bias)
    out = x @ weight
    return out if bias is None else out + bias


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The private operator: post-op "none", without scalars and algorithm."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.T, bias, "none", [], "")
    return out


def _onednn_works() -> bool:
    """Whether this torch has the operator, and the operator's result is correct."""
    x, weight, bias = (torch.ones(size, device="cpu") for size in ((2, 3), (3, 4), (4,)))
    try:
        with torch.no_grad():
            return bool((_onednn(x, weight, bias) == 4).all())
    except Exception:  # torch without oneDNN, or one whose operator has changed
        return False


_ONEDNN = _onednn_works()


@cache
def _on_intel() -> bool:
    return "Intel" in torch.cpu.get_capabilities().get("cpu_name", "")
