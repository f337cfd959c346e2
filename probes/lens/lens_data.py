"""The saved form of a lens: one entry a cell, read back into arrays or spread into a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt2kit.errors import InputError
from gpt2kit.result import Row

CellData = Mapping[str, Any]  # see `LogitLens.cells`
# Keys that lenses were first saved with -> the same in the header of all prompt results.
FIRST_KEYS = {
    "model": "source",
    "bos_added": "has_bos",
    "ids": "prompt_ids",
    "tokens": "prompt_tokens",
}


def fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a LogitLens, arrays as nested lists, from its saved data.

    Raises InputError for missing or misshapen parts.
    """
    try:
        _check_shape(data)
        return _header(data) | _values(data["cells"], len(data["positions"]))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise InputError(f"saved lens cannot be read: {type(error).__name__} {error}") from error


def _check_shape(data: Mapping[str, Any]) -> None:
    """Raise InputError unless the parts of a saved lens fit each other.

    There must be a cell for each row and position, with all targets.
    """
    for first, name in FIRST_KEYS.items():
        if data[first] != data[name]:
            raise InputError(f"saved lens has {first} unlike its {name}")
    ids, tokens = len(data["prompt_ids"]), len(data["prompt_tokens"])
    if ids != tokens:
        raise InputError(f"saved lens has {ids} ids, {tokens} tokens")
    cells, rows, positions = data["cells"], len(data["rows"]), len(data["positions"])
    if not cells or len(cells) != rows * positions:
        raise InputError(
            f"saved lens has {len(cells)} cells for {rows} rows and {positions} positions"
        )
    if any(len(cell["targets"]) != len(data["targets"]) for cell in cells):
        raise InputError(f"saved lens has cells without its {len(data['targets'])} targets")


def _header(data: Mapping[str, Any]) -> dict[str, Any]:
    following = [*data["prompt_ids"][1:], -1]
    kept = ("kind", "source", "dtype", "prompt_ids", "prompt_tokens", "has_bos")
    header = {name: data[name] for name in (*kept, "rows", "positions", "targets")}
    return header | {"next_ids": [following[p] for p in data["positions"]]}


def _values(cells: Sequence[CellData], columns: int) -> dict[str, Any]:
    """Nested lists (R, P, …) of each quantity. columns: P."""
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]

    def each(name: str, missing: Any = None) -> list[list[Any]]:
        """(R, P) of one entry; `missing` where it is null."""
        return [[missing if cell[name] is None else cell[name] for cell in row] for row in rows]

    def within(part: str, name: str) -> list[list[list[Any]]]:
        """(R, P, entries) of one entry of the tokens in `part`."""
        return [[[token[name] for token in cell[part]] for cell in row] for row in rows]

    return {
        "top_ids": within("top", "id"),
        "top_tokens": within("top", "token"),
        "top_logprobs": within("top", "logprob"),
        "log_z": each("log_z"),
        "entropy": each("entropy"),
        "kl": each("kl"),
        "next_logprobs": each("next_logprob"),
        "next_ranks": each("next_rank", missing=-1),
        "target_logprobs": within("targets", "logprob"),
        "target_ranks": within("targets", "rank"),
    }


def flat(cell: CellData) -> Row:
    """One row of a table: the cell's tokens side by side, as `top1_token`, `target1_rank`, …."""
    row = {name: value for name, value in cell.items() if not isinstance(value, list)}
    for part in ("top", "targets"):
        for number, token in enumerate(cell[part], start=1):
            prefix = f"{part.removesuffix('s')}{number}"
            row |= {f"{prefix}_{name}": value for name, value in token.items()}
    return row
