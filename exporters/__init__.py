"""exporters: torch -> ONNX, and ONNX -> running. `open_onnx` needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpt2kit.packages import lazy_attribute

if TYPE_CHECKING:
    from exporters.engine.runner import OnnxRunner, open_onnx
    from exporters.export import export_onnx
    from exporters.file.inspection import Inspection, inspect_onnx
    from exporters.parity.report import Report
    from exporters.parity.verify import verify

__all__ = [
    "Inspection",
    "OnnxRunner",
    "Report",
    "export_onnx",
    "inspect_onnx",
    "open_onnx",
    "verify",
]
_HOME = {
    "Inspection": "file.inspection",
    "OnnxRunner": "engine.runner",
    "Report": "parity.report",
    "export_onnx": "export",
    "inspect_onnx": "file.inspection",
    "open_onnx": "engine.runner",
    "verify": "parity.verify",
}


def __getattr__(name: str) -> Any:
    return lazy_attribute("exporters", _HOME, name)


def __dir__() -> list[str]:
    return __all__
