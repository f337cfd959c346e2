"""Prompts with a right and a wrong next token, for the measurements in `contrasts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gpt2kit.prompts import tokenizer_of
from gpt2kit.runner import Runner
from probes.tasks.ioi import ioi
from probes.tasks.word_lists import BOYS, GIRLS


class Case(NamedTuple):
    """A prompt, its right and its wrong next token, and a prompt of equally many tokens for which
    the right one is not right."""

    prompt: str
    right: str
    wrong: str
    corrupt: str


Cases = Callable[[Runner], Sequence[Case]]
_TEMPLATES = (
    ("When John and Mary went to the shops,{} gave the bag to", " Mary", " John"),
    ("When Tom and James went to the park,{} gave the ball to", " Tom", " James"),
    ("When Dan and Sid went to the shops,{} gave an apple to", " Dan", " Sid"),
    ("After Martin and Amy went to the park,{} gave a drink to", " Martin", " Amy"),
)
# The prompts of TransformerLens' exploratory analysis demo; corrupted, the names are exchanged.
DEMO = tuple(
    Case(template.format(wrong), right, wrong, template.format(right))
    for template, a, b in _TEMPLATES
    for right, wrong in ((a, b), (b, a))
)


def demo_cases(runner: Runner) -> Sequence[Case]:
    """The eight prompts of the demo, for every runner."""
    del runner
    return DEMO


def ioi_cases(runner: Runner, *, n: int) -> Sequence[Case]:
    """The first n prompts of `ioi` with seed 0."""
    pairs = ioi(tokenizer_of(runner), n)
    return list(map(Case, pairs.prompts, pairs.target, pairs.foil, pairs.corrupt))


def outsider_cases(runner: Runner, *, n: int, asked: str) -> Sequence[Case]:
    """The first n prompts of `ioi`: a name of the prompt against the one of its twin alone.

    asked: the name that takes the place of the right token, "right" or "wrong".
    """
    cases = []
    for case in ioi_cases(runner, n=n):
        (outsider,) = set(case.corrupt.split()) - set(case.prompt.split())
        name = case.right if asked == "right" else case.wrong
        cases.append(Case(case.prompt, name, f" {outsider}", case.corrupt))
    return cases


def pronoun_cases(
    runner: Runner, *, templates: Sequence[str], his: str, her: str
) -> Sequence[Case]:
    """Each template with each boy's and each girl's name in place of "{}".

    his, her: the right pronouns. Corrupted, the name is one of the other list.
    """
    del runner
    pairs = [*zip(BOYS, GIRLS, strict=True)]
    return [
        Case(template.format(name), right, wrong, template.format(other))
        for template in templates
        for boy, girl in pairs
        for name, other, right, wrong in ((boy, girl, his, her), (girl, boy, her, his))
    ]
