"""What every probe's result can do: turn into plain data, JSON, text and HTML."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any, cast

import numpy as np
from rich.console import Console, RenderableType
from rich.text import Text


class Result:
    """Base of the frozen dataclasses that probes return.

    A result says how it looks by `render`; terminals and notebooks show that.
    """

    def render(self) -> RenderableType:
        """What rich prints; by default one line."""
        return Text(repr(self))

    def to_dict(self) -> dict[str, Any]:
        """Field -> plain data; arrays become nested lists, NaN and infinities None."""
        fields = dataclasses.fields(cast(Any, self))
        return {field.name: _plain(getattr(self, field.name)) for field in fields}

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), color_system=None)
        with console.capture() as capture:
            console.print(self.render())
        return capture.get()

    def _repr_html_(self) -> str:
        console = Console(
            file=io.StringIO(), record=True, width=120, color_system="truecolor",
            force_terminal=True, force_jupyter=False,
        )  # fmt: skip
        console.print(self.render())
        code = console.export_html(inline_styles=True, code_format="{code}")
        return (
            '<pre style="overflow-x:auto;line-height:1.35;font-family:ui-monospace,monospace;'
            f'background:#16181d;color:#d8dade;padding:0.8em">{code}</pre>'
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
