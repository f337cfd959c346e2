"""What every probe's result can do: turn into plain data, JSON, text and HTML."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any, cast

import numpy as np
from rich.console import Console, RenderableType
from rich.text import Text

from probes.draw.view import html


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
        return {field.name: plain(getattr(self, field.name)) for field in fields}

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), color_system=None)
        with console.capture() as capture:
            console.print(self.render())
        return capture.get()

    def _repr_html_(self) -> str:
        return html(self.render())


def plain(value: Any) -> Any:
    """Numbers, text, lists and dicts that JSON knows; NaN and infinities become None."""
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
