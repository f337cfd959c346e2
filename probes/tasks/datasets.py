"""Seeded prompts with known answers, in clean and corrupted pairs, for any tokenizer.

Every prompt is built from single tokens, and its corrupted twin differs from it in place, so that
the two have equal length and positions match. Words that the tokenizer in use has not got as one
token are left out; what cannot be left out is an error that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.errors import InputError
from gpt2kit.prompts import counted
from gpt2kit.readout import Ints
from gpt2kit.result import Result
from gpt2kit.tokenizer import Tokenizer, printable
from probes.draw.tables import table
from probes.draw.words import title, visible

NAMES = """Mary John Alice Tom James Kate Anna Paul Sarah David Emma Peter Laura Jack Lucy Mark
    Jane Henry Rose Simon Helen Frank Susan Robert Martin Claire George Amy""".split()  # noqa: SIM905
PLACES = """park school garden station market library kitchen hospital office museum beach church
    bank hotel house shop""".split()  # noqa: SIM905
OBJECTS = """book letter key ring ball drink map basket picture ticket hat bottle computer necklace
    box watch""".split()  # noqa: SIM905
EVENTS = """war siege voyage reign famine drought trial search debate project mission exhibition
    construction campaign expedition marriage strike plague alliance""".split()  # noqa: SIM905
ARGUMENTS = """load size files last name path value index count mode data text key line width
    height start end color limit offset source target result user node parent group level
    token""".split()  # noqa: SIM905
WORDS = """oil column piece crime population unit dark river window paper stone music winter table
    glass horse island metal north ship bread cloud engine flower""".split()  # noqa: SIM905
CENTURIES = range(11, 20)
SHOWN = 4  # prompts of a table

# {a} and {b} are the two people in the order they come; {s} is the one of them who comes again.
TEMPLATES = (
    "When {a} and {b} walked into the {place}, {s} handed the {thing} to",
    "After {a} and {b} had met at the {place}, {s} passed the {thing} to",
    "While {a} and {b} were waiting near the {place}, {s} offered the {thing} to",
    "Since {a} and {b} both worked in the {place}, {s} could lend the {thing} to",
    "Once {a} and {b} came back from the {place}, {s} wanted to show the {thing} to",
)
YEARS = "The {event} lasted from the year {century}{year} to the year {century}"
DOCSTRING = (
    "def {name}(self, {args[0]}, {args[1]}, {args[2]}, {args[3]}):\n"
    '    """Give the {w[0]} {w[1]}\n\n'
    "    :param {args[0]}: {w[2]} {w[3]}\n"
    "    :param {args[1]}: {w[4]} {w[5]}\n"
    "    :param"
)


@dataclass(frozen=True, eq=False)
class Pairs(Result):
    """Prompts with one right and one wrong next token each, and their corrupted twins."""

    task: str
    prompts: tuple[str, ...]  # (n,)
    corrupt: tuple[str, ...]  # (n,) each of as many tokens as its prompt
    kinds: tuple[str, ...]  # (n,) prompts of one kind have the same number of tokens
    target: tuple[str, ...]  # (n,) the right next token of the prompt, leading space included
    foil: tuple[str, ...]  # (n,) the tempting wrong one
    target_ids: Ints  # (n,)
    foil_ids: Ints  # (n,)

    def __repr__(self) -> str:
        prompts = counted(len(self.prompts), "prompt")
        return f"Pairs({self.task}, {prompts}, {counted(len(set(self.kinds)), 'kind')})"

    def render(self) -> RenderableType:
        """The first few prompts."""
        answers = [
            f"{visible(right)} / {visible(wrong)}"
            for right, wrong in zip(self.target, self.foil, strict=True)
        ]
        return _table(self.task, self.prompts, self.corrupt, "right / wrong", answers)


@dataclass(frozen=True, eq=False)
class GreaterThan(Result):
    """Prompts that end where a later year's last two digits belong.

    right, wrong: two-digit tokens above the first year, and those that are not.
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

    def render(self) -> RenderableType:
        """The first few prompts."""
        answers = [f"{right[0]} to {right[-1]}" for right in self.right]
        return _table("greater-than", self.prompts, self.corrupt, "right", answers)


def ioi(tokenizer: Tokenizer, n: int, *, seed: int = 0) -> Pairs:
    """Indirect object identification: two people, one acts, the other is the answer.

    Half of the prompts name the answer first ("ABBA": answer, subject, subject), half the subject
    ("BABA"). Corrupted: the subject's second mention is a third person ("ABC"), so that nothing
    says who is meant. Wang et al. 2022, arXiv 2211.00593; wording our own.
    Raises InputError if too few names, places or things are one token each.
    """
    random = _random(n, seed)
    names = _pool(tokenizer, "ioi", "names", NAMES, 3)
    places = _pool(tokenizer, "ioi", "places", PLACES, 1)
    things = _pool(tokenizer, "ioi", "things", OBJECTS, 1)
    prompts, corrupt, kinds = list[str](), list[str](), list[str]()
    answers = list[tuple[str, str]]()
    for i in range(n):
        order, template = ("ABBA", "BABA")[i % 2], int(random.integers(len(TEMPLATES)))
        answer, subject, third = _draw(random, names, 3)
        a, b = (answer, subject) if order == "ABBA" else (subject, answer)
        place, thing = _draw(random, places, 1)[0], _draw(random, things, 1)[0]
        for into, s in ((prompts, subject), (corrupt, third)):
            into.append(TEMPLATES[template].format(a=a, b=b, s=s, place=place, thing=thing))
        kinds.append(f"{order} {template}")
        answers.append((f" {answer}", f" {subject}"))
    return _pairs(tokenizer, "ioi", prompts, corrupt, kinds, answers)


def greater_than(tokenizer: Tokenizer, n: int, *, seed: int = 0) -> GreaterThan:
    """Greater-than: "The war lasted from the year 1732 to the year 17", and then 33 to 99.

    Only years that are two tokens, century and two digits, are used. Corrupted: the first year
    ends in 01. Hanna et al. 2023, arXiv 2305.00586.
    Raises InputError if a two-digit number, or every year of every century, is not so.
    """
    random = _random(n, seed)
    events = _pool(tokenizer, "greater_than", "events", EVENTS, 1)
    digits = [f"{year:02d}" for year in range(100)]
    try:
        ids = [tokenizer.single(text) for text in digits]
    except InputError as error:
        raise InputError(f"greater_than: {error}; use GPT-2's own tokenizer") from error
    firsts = [
        (century, year)
        for century in CENTURIES
        if _is_split(tokenizer, century, "01")
        for year in range(2, 99)
        if _is_split(tokenizer, century, digits[year])
    ]
    if not firsts:
        raise InputError(
            "greater_than: no year such as ' 1732' is two tokens, ' 17' + '32'; "
            "use GPT-2's own tokenizer"
        )
    prompts, corrupt, years = list[str](), list[str](), list[int]()
    for _ in range(n):
        century, year = firsts[int(random.integers(len(firsts)))]
        event = _draw(random, events, 1)[0]
        for into, first in ((prompts, year), (corrupt, 1)):
            into.append(YEARS.format(event=event, century=century, year=digits[first]))
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


def docstring_like(tokenizer: Tokenizer, n: int, *, seed: int = 0) -> Pairs:
    """A Python function whose docstring is to name the third argument next.

    Wrong is the fourth argument. Corrupted: the third argument is another word, so that the answer
    stands nowhere. Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer
    attention-only transformer". Raises InputError if too few words are one token each.
    """
    random = _random(n, seed)
    arguments = _pool(tokenizer, "docstring_like", "argument names", ARGUMENTS, 6)
    words = _pool(tokenizer, "docstring_like", "words", WORDS, 6)
    prompts, corrupt, answers = list[str](), list[str](), list[tuple[str, str]]()
    for _ in range(n):
        name, *args, other = _draw(random, arguments, 6)
        described = _draw(random, words, 6)
        changed = [*args[:2], other, args[3]]
        for into, these in ((prompts, args), (corrupt, changed)):
            into.append(DOCSTRING.format(name=name, args=these, w=described))
        answers.append((f" {args[2]}", f" {args[3]}"))
    return _pairs(tokenizer, "docstring_like", prompts, corrupt, ["docstring"] * n, answers)


def repeated_tokens(
    vocab_size: int, batch: int, length: int, *, seed: int = 0, bos: int | None = None
) -> Ints:
    """(batch, 2 * length) random tokens said twice; (batch, 1 + 2 * length) with a BOS in front.

    The tokens of a row are all different (and none is the BOS), so each has exactly one earlier
    occurrence when it comes again. Raises InputError if the vocabulary has too few.
    """
    random = _random(batch, seed)
    allowed = np.setdiff1d(np.arange(vocab_size), [] if bos is None else [bos])
    if not 1 <= length <= len(allowed):
        raise InputError(
            f"length = {length} must be from 1 to {len(allowed)}, the different tokens"
        )
    blocks = np.stack([random.choice(allowed, length, replace=False) for _ in range(batch)])
    rows = np.tile(blocks, 2).astype(np.int64)
    return rows if bos is None else np.insert(rows, 0, bos, axis=1)


def _random(n: int, seed: int) -> np.random.Generator:
    if n < 1:
        raise InputError(f"{n} prompts asked for; ask for at least one")
    if seed < 0:
        raise InputError(f"seed = {seed} must not be negative")
    return np.random.default_rng(seed)


def _pool(tokenizer: Tokenizer, task: str, what: str, words: list[str], least: int) -> list[str]:
    """Those words that are one token after a space; at least so many of them."""
    have = [word for word in words if len(tokenizer.encode(f" {word}")) == 1]
    if len(have) < least:
        lacking = next(word for word in words if word not in have)
        pieces = " + ".join(map(repr, tokenizer.tokens(tokenizer.encode(f" {lacking}"))))
        raise InputError(
            f"{task}: {len(have)} of {len(words)} {what} are one token for this tokenizer, {least} "
            f"are needed (' {lacking}' is {pieces}); use GPT-2's own tokenizer"
        )
    return have


def _draw(random: np.random.Generator, pool: list[str], count: int) -> list[str]:
    return [pool[i] for i in random.choice(len(pool), count, replace=False)]


def _is_split(tokenizer: Tokenizer, century: int, digits: str) -> bool:
    return tokenizer.tokens(tokenizer.encode(f" {century}{digits}")) == [f" {century}", digits]


def _pairs(
    tokenizer: Tokenizer,
    task: str,
    prompts: list[str],
    corrupt: list[str],
    kinds: list[str],
    answers: list[tuple[str, str]],
) -> Pairs:
    right, wrong = zip(*answers, strict=True)
    right_ids, wrong_ids = (
        np.array([tokenizer.single(text) for text in texts]) for texts in (right, wrong)
    )
    return Pairs(
        task, tuple(prompts), tuple(corrupt), tuple(kinds), right, wrong, right_ids, wrong_ids
    )


def _table(
    task: str, prompts: Sequence[str], corrupt: Sequence[str], answer: str, answers: list[str]
) -> RenderableType:
    rows = table("prompt", "corrupted", answer)
    rows.padding = (0, 2, 1, 0)
    rows.columns[-1].no_wrap = True
    for row in list(zip(prompts, corrupt, answers, strict=True))[:SHOWN]:
        rows.add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in row))
    more = f"the first {SHOWN} are shown" if len(prompts) > SHOWN else ""
    return Group(title(task, counted(len(prompts), "prompt"), more), "", rows)
