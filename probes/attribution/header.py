"""What every attribution says first: which logit it explains, and of which prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2kit.printable import printable
from gpt2kit.prompts import Token, check_foil, token_id, token_texts
from gpt2kit.readout import Ints
from gpt2kit.result import PromptResult, prompt_header
from gpt2kit.runner import Runner


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AttributionHeader(PromptResult):
    """The logit that an attribution explains.

    It is the logit of `target` as the token after `position`; with a foil, that logit minus the
    foil's.
    """

    position: int
    target: str
    foil: str | None
    total: float  # the explained logit, or difference of two, as the model gives it

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source}, {self.explained}; print it for the table)"

    @property
    def explained(self) -> str:
        """The explained logit in words."""
        foil = "" if self.foil is None else f" minus logit of {printable(self.foil)!r}"
        return f"logit of {printable(self.target)!r}{foil} = {self.total:+.3f}"

    @property
    def explained_where(self) -> str:
        """The explained logit in words, and the position that it is read at."""
        token = printable(self.prompt_tokens[self.position])
        return f"{self.explained} after {token!r} (position {self.position})"

    def about(self, method: str) -> tuple[str, ...]:
        """The parts of a drawing's title: method, source, dtype, tokens read."""
        from probes.draw.words import tokens_read

        return method, self.source, self.dtype, tokens_read(len(self.prompt_ids), self.has_bos)


def explained_tokens(runner: Runner, target: Token, foil: Token | None) -> list[int]:
    """Ids of the target, and of the foil if there is one.

    Raises InputError unless each is one token, and if both are the same token.
    """
    ids = [token_id(runner, target, "target")]
    if foil is not None:
        ids.append(token_id(runner, foil, "foil"))
        check_foil(target, *ids)
    return ids


def explained_logit(
    runner: Runner, ids: Ints, position: int, target: Token, foil: Token | None, *, has_bos: bool
) -> dict[str, Any]:
    """The fields of `AttributionHeader` but `total`. ids: (N,) the prompt as it was run."""
    return prompt_header(runner, ids, has_bos=has_bos) | {
        "position": position,
        "target": _text_of(runner, target),
        "foil": None if foil is None else _text_of(runner, foil),
    }


def _text_of(runner: Runner, token: Token) -> str:
    return token if isinstance(token, str) else token_texts(runner, np.array([token]))[0]
