"""Words that options accept, and numbers in ASCII digits.

The lists repeat constants of the library, because reading those imports numpy or torch, which
`--help` and completion must not wait for. A test compares them.
"""

from __future__ import annotations

from typing import Any

import click

from gpt2kit.defaults import Default

DTYPES = ("float32", "float16", "bfloat16", "float64")
EXPORT_DTYPES = ("float32", "float16", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
PROFILES = ("portable", "fused")
QUANTISATIONS = ("int8", "int4", "int4-all")
QUANTITIES = ("prob", "logit", "rank", "entropy", "kl")
SITES = ("resid", "mid", "attn", "mlp")
LEVELS = ("component", "head", "neuron")
ABLATIONS = ("zero", "mean", "resample")


class AsciiInteger(click.types.IntParamType):
    """An integer in the digits 0 to 9; Python's `int` also reads digits of other scripts."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Read the number, or fail as click does. A default stays as it is."""
        if isinstance(value, Default):
            return value
        return super().convert(_ascii(self, value, param, ctx), param, ctx)


class AsciiNumber(click.types.FloatParamType):
    """A number in the digits 0 to 9."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Read the number, or fail as click does."""
        return super().convert(_ascii(self, value, param, ctx), param, ctx)


class IntegerOrAll(AsciiInteger):
    """An integer, or the word "all", which is 0."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Read the number or the word, or fail as click does."""
        return 0 if value == "all" else super().convert(value, param, ctx)


INTEGER, NUMBER, INTEGER_OR_ALL = AsciiInteger(), AsciiNumber(), IntegerOrAll()


def _ascii(kind: click.ParamType[Any], value: Any, param: Any, ctx: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        kind.fail(f"{value!r} is not a number in the digits 0 to 9.", param, ctx)
    return value
