"""The plan of an exported file, and which plans are possible."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from exporters.file.packing import BITS
from exporters.tracing.quantize import check_blocks
from gpt2kit.checks import check_flag, check_integer
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ExportError

OPSETS = range(18, 25)
DEFAULT_OPSET = 23  # the first with Attention as one operator (benchmarks/figures.py compares)
EXPORT_DTYPES = ("float32", "float16", "bfloat16")
PROFILES = ("portable", "fused")
HEAD_MULTIPLE = 8  # onnxruntime's GroupQueryAttention refuses other widths of a head


@dataclass(frozen=True)
class Plan:
    """The options of `exporters.export_onnx`. taps, edits: canonical names."""

    taps: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    profile: str = "portable"
    dtype: str = "float32"
    quantize: str | None = None
    opset: int = DEFAULT_OPSET
    edits_required: bool = False

    def check(self, config: GPT2Config) -> None:
        """Raise ExportError if no file of this model can be made so, InputError for an argument's
        type."""
        _check_choice("profile", self.profile, PROFILES)
        _check_choice("dtype", self.dtype, EXPORT_DTYPES)
        if self.quantize is not None:
            _check_choice("quantize", self.quantize, BITS)
            self._check_quantised()
            check_blocks(config)
        if self.profile == "fused" and config.d_head % HEAD_MULTIPLE:
            raise ExportError(
                f"the fused profile needs heads whose width is a multiple of {HEAD_MULTIPLE}, not "
                f"{config.d_head}; take --profile portable"
            )
        if check_flag("edits_required", self.edits_required) and not self.edits:
            raise ExportError("edits are required, but none is named; name some with --edits")
        check_integer("opset", self.opset, low=0)
        if self.opset not in OPSETS:
            raise ExportError(f"opset {self.opset} is not from {OPSETS[0]} to {OPSETS[-1]}")

    def _check_quantised(self) -> None:
        if self.dtype != "float32":
            raise ExportError(f"quantize {self.quantize} goes with float32, not {self.dtype}")
        for tap in (*self.taps, *self.edits):
            if tap.endswith(".head_out"):
                raise ExportError(
                    f"a quantised file has no {tap}: that needs the heads' weights one by one; "
                    "leave the tap or --quantize out"
                )


def _check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ExportError(f"{name} {value!r} is not one of {', '.join(choices)}")
