"""The contract of every result: plain data, JSON, a table, text and HTML.

A result is a frozen dataclass with `eq=False` that inherits from `Result`. Its fields are plain
values, numpy arrays, other dataclasses, or tuples and dicts of these; their type hints say how
saved data is read back (`gpt2kit.result_data`).
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.json_files import parse_json
from gpt2kit.packages import explained_imports
from gpt2kit.printable import printable_text
from gpt2kit.prompts import token_texts
from gpt2kit.readout import Ints
from gpt2kit.result_data import from_plain, same, to_plain
from gpt2kit.runner import Runner

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType


Row = dict[str, Any]  # column -> plain value


class Result:
    """Base of all results of probes and exporters."""

    schema_version: ClassVar[int] = 1

    @classmethod
    def result_kind(cls) -> str:
        """The name of this kind of result in saved data: the class name in words, "head scores"."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `kind`, `schema_version`, then every field; arrays become nested lists."""
        fields = dataclasses.fields(cast("Any", self))
        header = {"kind": self.result_kind(), "schema_version": self.schema_version}
        return header | {field.name: to_plain(getattr(self, field.name)) for field in fields}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a result, equal to the one that `to_dict` was called on.

        Raises InputError for another kind of result, a newer schema, a missing field, or a value of
        a wrong type.
        """
        cls.check_header(data)
        return from_plain(cls, data)

    @classmethod
    def check_header(cls, data: Mapping[str, Any]) -> None:
        """Raise InputError unless `data` is a saved result of this kind and schema."""
        if not isinstance(data, Mapping):
            raise InputError(f"{cls.result_kind()}: an object is needed, got {type(data).__name__}")
        kind, version = data.get("kind"), data.get("schema_version")
        if kind != cls.result_kind():
            raise InputError(f"saved data of kind {kind!r} given, {cls.result_kind()!r} is needed")
        known = range(1, cls.schema_version + 1)
        if not isinstance(version, int) or isinstance(version, bool) or version not in known:
            raise InputError(
                f"{cls.result_kind()}: schema version {version!r} is unknown, this gpt2kit reads "
                f"versions up to {cls.schema_version}; update gpt2kit"
            )

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuild the result from `to_json`'s text. Raises InputError as `from_dict` does."""
        try:
            data = parse_json(text)
        except (TypeError, ValueError) as error:
            raise InputError(f"{cls.result_kind()}: not JSON ({error})") from error
        if not isinstance(data, dict):
            raise InputError(f"{cls.result_kind()}: saved data must be a JSON object")
        return cls.from_dict(data)

    def table(self) -> list[Row]:
        """Rows of plain values: one dict for each row, all with the same columns."""
        raise NotImplementedError

    def to_csv(self) -> str:
        """`table` as CSV text, with a header line."""
        return as_csv(self.table())

    @explained_imports()
    def to_dataframe(self) -> DataFrame:
        """`table` as a pandas DataFrame. Raises MissingPackageError if pandas is not installed."""
        import pandas

        return pandas.DataFrame(self.table())

    def render(self) -> RenderableType:
        """What rich prints in a terminal; by default the `repr`."""
        from rich.text import Text

        return Text(repr(self))

    @explained_imports()
    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), color_system=None)
        with console.capture() as capture:
            console.print(self.render())
        return printable_text(capture.get())

    @explained_imports()
    def _repr_html_(self) -> str:
        return as_html(self.render())

    def __eq__(self, other: object) -> bool:
        return same(self, other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        values = [getattr(self, field.name) for field in dataclasses.fields(cast("Any", self))]
        return hash((type(self), *(value for value in values if isinstance(value, str))))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ModelResult(Result):
    """A result about one model."""

    source: str  # model, and revision if one was named
    dtype: str  # `Runner.precision`: "float32", "int8", …


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PromptResult(ModelResult):
    """A result about one model and one prompt of N tokens."""

    prompt_ids: Ints  # (N,) every token, BOS included if it was added
    prompt_tokens: tuple[str, ...]  # (N,) the same as text
    has_bos: bool  # whether <|endoftext|> was put first


def model_header(runner: Runner) -> dict[str, Any]:
    """The fields of `ModelResult`."""
    return {"source": str(runner.source), "dtype": runner.precision}


def prompt_header(runner: Runner, ids: Ints, *, has_bos: bool = False) -> dict[str, Any]:
    """The fields of `PromptResult`. ids: (N,) the prompt as it was run, BOS included."""
    tokens = token_texts(runner, ids)
    return model_header(runner) | {"prompt_ids": ids, "prompt_tokens": tokens, "has_bos": has_bos}


def array_rows(values: Mapping[str, np.ndarray], axes: Sequence[str]) -> list[Row]:
    """Rows of a `table`: one for each entry of arrays of equal shape.

    values: column -> array. axes: the names of its axes, which become columns of indices.
    """
    shape = next(iter(values.values())).shape
    return [
        dict(zip(axes, place, strict=True))
        | {name: to_plain(array[place]) for name, array in values.items()}
        for place in np.ndindex(shape)
    ]


def as_csv(rows: Sequence[Row]) -> str:
    """Rows of a `table` as CSV text, with a header line."""
    import csv

    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@explained_imports()
def as_html(what: RenderableType) -> str:
    """An HTML fragment, in colour. Grids wider than 120 columns scroll sideways."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    room = Console(file=io.StringIO(), width=100_000)
    needs = 0  # text and tables adapt to any width; grids have a width of their own
    if hasattr(what, "__rich_measure__") and not isinstance(what, Table | Text):
        needs = Measurement.get(room, room.options, what).maximum
    console = Console(
        file=io.StringIO(), record=True, width=max(120, needs),
        color_system="truecolor", force_terminal=True, force_jupyter=False,
    )  # fmt: skip
    console.print(what)
    code = console.export_html(inline_styles=True, code_format="{code}")
    return (
        '<pre style="overflow-x:auto;white-space:pre;line-height:1.35;'
        "font-family:ui-monospace,monospace;"
        f'background:#16181d;color:#d8dade;padding:0.8em">{code}</pre>'
    )
