"""Greater-than: Hanna et al. 2023, arXiv 2305.00586."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.errors import InputError
from gpt2kit.prompts import counted
from gpt2kit.readout import Ints
from gpt2kit.result import Result, Row
from gpt2kit.tokenizer import Tokenizer
from probes.tasks.sampling_words import draw_words, seeded, single_tokens
from probes.tasks.word_lists import EVENTS

if TYPE_CHECKING:
    from rich.console import RenderableType

CENTURIES = range(11, 20)
YEARS = "The {event} lasted from the year {century}{year} to the year {century}"


@dataclass(frozen=True, eq=False)
class GreaterThan(Result):
    """Prompts that end before the last two digits of a later year.

    right, wrong: the two-digit tokens above the first year, and all others.
    """

    prompts: tuple[str, ...]  # (n,)
    corrupt: tuple[str, ...]  # (n,) the same with the year 01, after which nearly all is right
    years: Ints  # (n,) the last two digits of the first year, from 2 to 98
    right: tuple[tuple[str, ...], ...]  # (n, …) as tokens, such as "08"
    wrong: tuple[tuple[str, ...], ...]  # (n, …)
    right_ids: tuple[tuple[int, ...], ...]  # (n, …)
    wrong_ids: tuple[tuple[int, ...], ...]  # (n, …)

    def __repr__(self) -> str:
        return f"GreaterThan({counted(len(self.prompts), 'prompt')})"

    def table(self) -> list[Row]:
        """One row for each prompt; the right answers are those from `right_from` to 99."""
        columns = ("prompt", "corrupt", "year", "right_from")
        first_right = [right[0] for right in self.right]
        rows = zip(self.prompts, self.corrupt, self.years.tolist(), first_right, strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def render(self) -> RenderableType:
        """The first few prompts."""
        from probes.draw.task_table import task_table

        answers = [f"{right[0]} to {right[-1]}" for right in self.right]
        return task_table("greater-than", self.prompts, self.corrupt, "right", answers)


def greater_than(tokenizer: Tokenizer, n: int, *, seed: int = 0) -> GreaterThan:
    """ "The war lasted from the year 1732 to the year 17", and then 33 to 99.

    Only years of two tokens, the century and two digits, are used. Corrupted: the first year ends
    in 01.
    Raises InputError if a two-digit number is not one token, or no year is two tokens.
    """
    random = seeded(n, seed)
    events = single_tokens(tokenizer, "greater_than", "events", EVENTS, 1)
    digits = [f"{year:02d}" for year in range(100)]
    try:
        ids = [tokenizer.single(text) for text in digits]
    except InputError as error:
        raise InputError(f"greater_than: {error}; use GPT-2's own tokenizer") from error
    firsts = _first_years(tokenizer, digits)
    prompts, corrupt, years = list[str](), list[str](), list[int]()
    for _ in range(n):
        century, year = firsts[int(random.integers(len(firsts)))]
        event = draw_words(random, events, 1)[0]
        for texts, first in ((prompts, year), (corrupt, 1)):
            texts.append(YEARS.format(event=event, century=century, year=digits[first]))
        years.append(year)
    return GreaterThan(
        prompts=tuple(prompts),
        corrupt=tuple(corrupt),
        years=np.array(years, np.int64),
        right=tuple(tuple(digits[year + 1 :]) for year in years),
        wrong=tuple(tuple(digits[: year + 1]) for year in years),
        right_ids=tuple(tuple(ids[year + 1 :]) for year in years),
        wrong_ids=tuple(tuple(ids[: year + 1]) for year in years),
    )


def _first_years(tokenizer: Tokenizer, digits: list[str]) -> list[tuple[int, int]]:
    """Every (century, last two digits) that is two tokens, as is the same century's year 01."""
    years = [
        (century, year)
        for century in CENTURIES
        if _is_split(tokenizer, century, "01")
        for year in range(2, 99)
        if _is_split(tokenizer, century, digits[year])
    ]
    if not years:
        raise InputError(
            "greater_than: no year such as ' 1732' is two tokens, ' 17' + '32'; "
            "use GPT-2's own tokenizer"
        )
    return years


def _is_split(tokenizer: Tokenizer, century: int, digits: str) -> bool:
    """Whether a year is two tokens, its century and its last two digits."""
    return tokenizer.tokens(tokenizer.encode(f" {century}{digits}")) == [f" {century}", digits]
