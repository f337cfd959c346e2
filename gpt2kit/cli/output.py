"""How commands print a result: text for people, JSON or CSV for programs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from gpt2kit.cli.group import debug_option
from gpt2kit.cli.options import options
from gpt2kit.cli.terminal import print_rich, write_csv, write_json
from gpt2kit.errors import InputError

if TYPE_CHECKING:
    from gpt2kit.result import Result

_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("--csv", "as_csv", is_flag=True, help="Print a table as CSV."),
    debug_option,
)


@dataclass(frozen=True)
class DataFormat:
    """The form that the user chose."""

    as_json: bool
    as_csv: bool

    @property
    def is_data(self) -> bool:
        """Whether a program reads it."""
        return self.as_json or self.as_csv

    def show(self, result: Result) -> None:
        """Print a result as JSON, as CSV, or for the terminal."""
        if not self.is_data:
            print_rich(result.render())
        else:
            self.show_data(result)

    def show_data(self, result: Result) -> None:
        """Print a result as JSON, or else as CSV."""
        if self.as_json:
            print_json(result.to_json())
        else:
            write_csv(result.to_csv())


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`, `--csv` and `--debug`; the command receives a `DataFormat` as `output`."""

    @functools.wraps(command)
    def wrapped(*, as_json: bool, as_csv: bool, **values: Any) -> Any:
        if as_json and as_csv:
            raise InputError("--json and --csv: choose one")
        return command(output=DataFormat(as_json, as_csv), **values)

    return _options(wrapped)


def print_json(data: str | dict[str, Any] | list[Any]) -> None:
    """Print JSON text, or plain data as JSON."""
    if not isinstance(data, str):
        import json

        data = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False)
    write_json(data)
