"""x W + b, on the fastest kernel at hand."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)
_LARGE = 1 << 18  # weights; below, preparing a kernel for a new shape costs more than it brings
_FEW = range(2, 33)  # rows


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, in), weight (in, out), bias (out,) -> (…, out).

    Without gradients, float32 on a CPU may go to oneDNN, by the operator that torch's own compiler
    calls. Eager torch takes MKL, which on processors that are not Intel's is about half as fast; on
    Intel's it is faster, but for a few rows (benchmarks/RESULTS.md).
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
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.T, bias, "none", [], "")
        return out
    out = x @ weight
    return out if bias is None else out + bias


@cache
def _on_intel() -> bool:
    return "Intel" in torch.cpu.get_capabilities().get("cpu_name", "")
