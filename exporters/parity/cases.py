"""The cases of the parity check: which tokens both engines run, how, and with which edits.

`PLAIN_CASES` and `EDIT_CASES` are the tables; `cases_for` picks the ones that a file can run. A
run that fetches a tap uses another session, or another path, than a run that fetches none. A file
with taps therefore runs some cases twice, with and without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from exporters.engine.runner import OnnxRunner
from gpt2kit.config import GPT2Config
from gpt2kit.edit_arrays import Chunk
from gpt2kit.edits import Edit
from gpt2kit.readout import Ints
from gpt2kit.taps import SCALE, SCORES, axes_of

DECODE_STEPS = 32
_PROMPT = 5  # tokens before the first decode step
Steps = list[tuple[Ints, Ints | None]]  # ids (batch, pos) and lengths (batch,), run after run


@dataclass(frozen=True)
class CaseTokens:
    """Random token ids, the same for every file of one vocabulary and context size.

    Every size is at most the context. `lengths` are the lengths of the rows of `ragged`; `after`
    holds the tokens that follow it, one per row.
    """

    prompts: Ints  # (2, 48)
    decoded: Ints  # (1, 5 + DECODE_STEPS)
    ragged: Ints  # (3, 24)
    lengths: Ints  # (3,)
    after: tuple[Ints, ...]  # up to 4 of (3, 1)
    context: Ints  # (1, n_positions)
    edited: Ints  # (2, 6)


def draw_tokens(config: GPT2Config) -> CaseTokens:
    """Draw the tokens of all cases. The order of the draws decides what each case runs."""
    rng, context = np.random.default_rng(0), config.n_positions

    def draw_ids(batch: int, pos: int) -> Ints:
        return rng.integers(0, config.vocab_size, (batch, max(1, min(pos, context))))

    prompts, decoded, ragged = draw_ids(2, 48), draw_ids(1, _PROMPT + DECODE_STEPS), draw_ids(3, 24)
    width = ragged.shape[1]
    return CaseTokens(
        prompts=prompts,
        decoded=decoded,
        ragged=ragged,
        lengths=np.maximum([width, width // 3, 1], 1),
        after=tuple(draw_ids(3, 1) for _ in range(min(4, context - width))),
        context=draw_ids(1, context),
        edited=draw_ids(2, 6),
    )


# The runs of a case


def prefill(tokens: CaseTokens) -> Steps:
    """A whole prompt at once."""
    return [(tokens.prompts, None)]


def chunked_prefill(tokens: CaseTokens) -> Steps:
    """The same prompt in chunks, one of them a single token."""
    return _chunks(tokens.prompts, (7, 8, 21))


def decode(tokens: CaseTokens) -> Steps:
    """A short prompt, then one token after the other."""
    ids = tokens.decoded
    steps = [(ids[:, i : i + 1], None) for i in range(_PROMPT, ids.shape[1])]
    return [(ids[:, :_PROMPT], None), *steps]


def short_decode(tokens: CaseTokens) -> Steps:
    """The start of `decode`."""
    return decode(tokens)[:9]


def unequal_rows(tokens: CaseTokens) -> Steps:
    """Rows of unequal length, padded, then some steps that follow each row's own end."""
    return [(tokens.ragged, tokens.lengths), *_steps_after(tokens)]


def equal_rows(tokens: CaseTokens) -> Steps:
    """The same rows without padding, then the same steps."""
    return [(tokens.ragged, None), *_steps_after(tokens)]


def full_context(tokens: CaseTokens) -> Steps:
    """All positions of the context; the last three are run one by one."""
    context = tokens.context.shape[1]
    return _chunks(tokens.context, (context - 3, context - 2, context - 1))


def edited_prefill(tokens: CaseTokens) -> Steps:
    """A short prompt at once."""
    return [(tokens.edited, None)]


def edited_steps(tokens: CaseTokens) -> Steps:
    """The same prompt in parts: a padded one, which leaves a gap, a chunk, then single tokens."""
    ids = tokens.edited
    steps = [(ids[:, i : i + 1], None) for i in range(4, ids.shape[1])]
    return [(ids[:, :2], np.array([2, 1])), (ids[:, 2:4], None), *steps]


def _chunks(ids: Ints, ends: tuple[int, ...]) -> Steps:
    inside = [end for end in ends if 0 < end < ids.shape[1]]
    return [(chunk, None) for chunk in np.split(ids, inside, axis=1)]


def _steps_after(tokens: CaseTokens) -> Steps:
    return [(step, None) for step in tokens.after]


# The edits of a case


def no_edits(file: OnnxRunner, tokens: CaseTokens) -> list[Edit]:
    """The model as it is."""
    return []


def every_edit(file: OnnxRunner, tokens: CaseTokens) -> list[Edit]:
    """A local edit of every tap that the file lets one edit."""
    return [local_edit(tap, tokens.edited) for tap in file.edits]


def edits_except_scores(file: OnnxRunner, tokens: CaseTokens) -> list[Edit]:
    """The edits that do not keep a fused file from its fast decode step."""
    return [edit for edit in every_edit(file, tokens) if axes_of(edit.tap) != SCORES]


def random_edit(tap: str, ids: Ints, config: GPT2Config) -> Edit:
    """A random factor and summand per entry of the last axis, always the same for one tap.

    A scale is only multiplied: layer norm divides by it, and a scale made much smaller by a summand
    would enlarge every rounding error.
    """
    rng = np.random.default_rng(list(tap.encode()))
    chunk = Chunk(np.zeros(len(ids), np.int64), ids.shape[1], ids.shape[1])
    size = chunk.size(axes_of(tap)[-1], config)
    add = 0.0 if axes_of(tap) == SCALE else rng.uniform(-0.1, 0.1, size)
    return Edit(tap, rng.uniform(0.7, 1.3, size), add)


def local_edit(tap: str, ids: Ints) -> Edit:
    """A small change at every other position of the last row."""
    axes, last = axes_of(tap), len(ids) - 1
    axis = "query" if "query" in axes else "pos"
    add = 0.0 if axes == SCALE else 0.01
    return Edit(tap, 0.95, add, {"batch": last, axis: slice(1, ids.shape[1], 2)})


# When a case applies


def always(file: OnnxRunner) -> bool:
    """Every file."""
    return True


def is_portable(file: OnnxRunner) -> bool:
    """The portable profile takes padding on either side."""
    return file.profile == "portable"


def is_fused(file: OnnxRunner) -> bool:
    """The fused profile takes padding on the right only."""
    return file.profile == "fused"


def has_taps(file: OnnxRunner) -> bool:
    """Files that carry taps."""
    return bool(file.taps)


def has_edits(file: OnnxRunner) -> bool:
    """Files that take edits."""
    return bool(file.edits)


def has_taps_and_edits(file: OnnxRunner) -> bool:
    """Files that carry taps and take edits."""
    return has_taps(file) and has_edits(file)


def mixes_scores(file: OnnxRunner) -> bool:
    """Fused files that take edits of scores and others: only the others use the decode step."""
    of_scores = [axes_of(tap) == SCORES for tap in file.edits]
    return is_fused(file) and any(of_scores) and not all(of_scores)


@dataclass(frozen=True)
class Case:
    """One entry of the table.

    name: what reports call it.
    steps: the runs, one after the other, through one cache.
    applies: whether a file has what the case tests.
    edits: made in every run.
    with_taps: whether the runs fetch the file's taps.
    other_client: whether the graph is fed as other software feeds it: padding on the left, and a
        cache that comes out longer than it went in (see `exporters.parity.other_client`).
    """

    name: str
    steps: Callable[[CaseTokens], Steps]
    applies: Callable[[OnnxRunner], bool] = always
    edits: Callable[[OnnxRunner, CaseTokens], list[Edit]] = no_edits
    with_taps: bool = True
    other_client: bool = False


PLAIN_CASES = (
    Case("prefill", prefill),
    Case("chunked prefill", chunked_prefill),
    Case("decode", decode),
    Case("right padding", unequal_rows),
    Case("left padding", unequal_rows, is_portable, other_client=True),
    Case("cache not shared", equal_rows, is_fused, other_client=True),
    Case("full context", full_context),
    Case("decode without taps", short_decode, has_taps, with_taps=False),
    Case("padding without taps", unequal_rows, has_taps, with_taps=False),
)
EDIT_CASES = (
    Case("edits through the cache", edited_steps, has_edits, every_edit),
    Case("edits without taps", edited_steps, has_taps_and_edits, every_edit, with_taps=False),
    Case("edits but of scores", edited_steps, mixes_scores, edits_except_scores, with_taps=False),
)


def cases_for(file: OnnxRunner) -> Iterator[Case]:
    """Every case that applies to a file, with one more for each tap that it lets one edit."""
    yield from (case for case in PLAIN_CASES if case.applies(file))
    yield from map(edit_case, file.edits)
    yield from (case for case in EDIT_CASES if case.applies(file))


def edit_case(tap: str) -> Case:
    """A random edit of one tap."""

    def edits(file: OnnxRunner, tokens: CaseTokens) -> list[Edit]:
        return [random_edit(tap, tokens.edited, file.config)]

    return Case(f"edit of {tap}", edited_prefill, has_edits, edits)
