"""Generation over any Runner: token by token, and as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from gpt2kit.batch import Batch, Ids, KVCache, prepare
from gpt2kit.checks import check_function, check_integer, short
from gpt2kit.config import GPT2Config
from gpt2kit.edit_arrays import Chunk, affine, listed
from gpt2kit.edits import Edit
from gpt2kit.errors import InputError
from gpt2kit.logits import largest
from gpt2kit.prompts import encode, tokenizer_of
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Run, Runner
from gpt2kit.sampling import Sampler
from gpt2kit.streaming import StreamedText

TextOrTexts = TypeVar("TextOrTexts", str, list[str])
Head = Callable[[Run], Floats]  # a run that holds the taps asked for -> logits (batch, vocab)
Watch = Callable[[Run, Ints], None]  # called with each step's run and the tokens chosen from it


def steps(
    runner: Runner,
    ids: Ids,
    *,
    max_new_tokens: int,
    sampler: Sampler,
    lengths: ArrayLike | None = None,
    edits: Sequence[Edit] = (),
    taps: str | Iterable[str] = (),
    head: Head | None = None,
    watch: Watch | None = None,
) -> Iterator[Ints]:
    """Yield the next token of every row, (batch,), step by step.

    head:  computes the logits to choose from, (batch, vocab), from a run that holds `taps`. The
           engine then leaves out its own logits.
    watch: called with each step's run, which holds `taps`, and the tokens chosen from it.
    Raises InputError before the first step if the rows and the new tokens do not fit the context,
    and EditError if an edit does not reach as far as the rows will.
    """
    check_integer("max_new_tokens", max_new_tokens)
    check_function("head", head)
    check_function("watch", watch)
    sampler.check(runner.config.vocab_size)
    batch = prepare(ids, lengths, None, runner.config)
    positions = batch.end + max_new_tokens - 1  # the last new token is never fed back
    if positions > runner.config.n_positions:
        raise InputError(
            f"{batch.end} prompt tokens and {max_new_tokens} new ones need {positions} positions, "
            f"the context holds {runner.config.n_positions}; shorten the prompt or ask for fewer"
        )
    _check_reach(edits, runner.config, len(batch.ids), positions)
    count = sampler.candidates or runner.config.vocab_size
    run = partial(
        runner.run, edits=edits, taps=taps, last_only=True, top_k=count if head is None else 0
    )
    cache = runner.new_cache(len(batch.ids), positions)
    return _step_by_step(run, batch, cache, max_new_tokens, sampler, count, head, watch)


def _check_reach(
    edits: Sequence[Edit], config: GPT2Config, batch_size: int, positions: int
) -> None:
    """Raise EditError if an edit does not fit the last step, which has the most positions."""
    last = Chunk(np.full(batch_size, positions - 1), 1, positions, cached=True)
    affine([edit for edit in listed(edits) if isinstance(edit, Edit)], config, last)


def _step_by_step(
    run: Callable[..., Run],
    batch: Batch,
    cache: KVCache | None,
    max_new_tokens: int,
    sampler: Sampler,
    count: int,
    head: Head | None,
    watch: Watch | None,
) -> Iterator[Ints]:
    """Run, choose, yield, and feed back what was chosen. count: number of candidates."""
    rows, lengths = batch.ids, batch.lengths
    for _ in range(max_new_tokens):
        step = run(rows, lengths=lengths, cache=cache)
        if head is not None:
            logits, ids = largest(head(step), count)
        else:
            assert step.top_ids is not None
            logits, ids = step.logits[:, -1], step.top_ids[:, -1]
        chosen = sampler.pick(logits, ids)
        if watch is not None:
            watch(step, chosen)
        yield chosen
        rows, lengths, cache = chosen[:, None], np.ones_like(lengths), step.cache


def generate(
    runner: Runner,
    prompt: TextOrTexts,
    *,
    max_new_tokens: int = 40,
    greedy: bool = False,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    edits: Sequence[Edit] = (),
    on_text: Callable[[int, str], None] | None = None,
    taps: str | Iterable[str] = (),
    head: Head | None = None,
    watch: Watch | None = None,
) -> TextOrTexts:
    """Continue a prompt, or a batch of prompts of unequal length; return the new text alone.

    greedy, temperature, top_k, top_p, seed: see `gpt2kit.sampling.Sampler`.
    stop:    a row ends before the first of these strings, or at a token that ends a text.
    edits:   applied at every step, at absolute positions.
    on_text: called with (row, piece of text) as soon as the piece can no longer change.
    taps, head, watch: see `steps`; for looking at each step's run.
    Raises InputError before any work if a prompt is empty or does not fit the context.
    """
    sampler = Sampler(temperature, top_k, top_p, greedy, seed)
    check_function("on_text", on_text)
    stops = _texts("stop", stop)
    if not all(stops):
        raise InputError("a stop string is empty; leave it out or give some text")
    prompts = [prompt] if isinstance(prompt, str) else _listed("prompt", prompt)
    if not prompts:
        raise InputError("no prompts were given")
    ids = [encode(runner, p) for p in prompts]
    tokenizer, ends = tokenizer_of(runner), runner.config.end_tokens
    texts = [StreamedText(tokenizer, stops, ends) for _ in prompts]
    tokens = steps(
        runner, ids, max_new_tokens=max_new_tokens, sampler=sampler, edits=edits, taps=taps,
        head=head, watch=watch,
    )  # fmt: skip
    for step, chosen in enumerate(tokens, start=1):
        _push(texts, chosen, on_text, last=step == max_new_tokens)
        if all(text.done for text in texts):
            break
    return texts[0].text if isinstance(prompt, str) else [text.text for text in texts]


def _push(
    texts: Sequence[StreamedText],
    chosen: Ints,
    on_text: Callable[[int, str], None] | None,
    *,
    last: bool,
) -> None:
    """Add one token to each row that has not ended, and report the new text of each."""
    for row, text in enumerate(texts):
        piece = "" if text.done else text.push(int(chosen[row]), last=last)
        if piece and on_text is not None:
            on_text(row, piece)


def _texts(name: str, given: Any) -> list[str]:
    """One text or several, as a list. Raises InputError for anything else."""
    texts = [given] if isinstance(given, str) else _listed(name, given)
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{name}: {short(text)} is not text")
    return texts


def _listed(name: str, given: Any) -> list[Any]:
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise InputError(f"{name} = {short(given)} must be a text or a list of texts")
    return list(given)
