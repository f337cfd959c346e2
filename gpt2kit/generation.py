"""Generation over any Runner: token by token, and as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from gpt2kit.batch import Ids, KVCache, prepare
from gpt2kit.edit_arrays import Chunk, affine, listed
from gpt2kit.edits import Edit
from gpt2kit.errors import InputError
from gpt2kit.logits import largest
from gpt2kit.prompts import encode
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Run, Runner
from gpt2kit.sampling import Sampler
from gpt2kit.tokenizer import Tokenizer

TextOrTexts = TypeVar("TextOrTexts", str, list[str])


def steps(
    runner: Runner,
    ids: Ids,
    *,
    max_new_tokens: int,
    sampler: Sampler,
    lengths: ArrayLike | None = None,
    edits: Sequence[Edit] = (),
    taps: str | Iterable[str] = (),
    head: Callable[[Run], Floats] | None = None,
    watch: Callable[[Run, Ints], None] | None = None,
) -> Iterator[Ints]:
    """Yield the next token of every row, (batch,), step by step.

    head:  gives the logits (batch, vocab) to choose from, of a run that holds `taps`, in place of
           the engine's own, which are then not computed.
    watch: called with each step's run, which holds `taps`, and the tokens chosen from it.
    Raises InputError before the first step if the rows and what they will grow by do not fit, and
    EditError if an edit does not reach as far as they will.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens = {max_new_tokens} must be at least 1")
    sampler.check(runner.config.vocab_size)
    batch = prepare(ids, lengths, None, runner.config)
    total = batch.end + max_new_tokens
    if total - 1 > runner.config.n_positions:  # the last new token is never fed back
        raise InputError(
            f"{batch.end} prompt tokens and {max_new_tokens} new ones need {total - 1} positions, "
            f"the context holds {runner.config.n_positions}; shorten the prompt or ask for fewer"
        )

    end = Chunk(np.full(len(batch.ids), total - 2), 1, total - 1, cached=True)
    affine([edit for edit in listed(edits) if isinstance(edit, Edit)], runner.config, end)

    def generator() -> Iterator[Ints]:
        cache: KVCache | None = runner.new_cache(len(batch.ids), total - 1)
        rows, sizes = batch.ids, batch.lengths
        candidates = sampler.candidates or runner.config.vocab_size
        for _ in range(max_new_tokens):
            run = runner.run(
                rows, lengths=sizes, cache=cache, edits=edits, taps=taps, last_only=True,
                top_k=candidates if head is None else 0,
            )  # fmt: skip
            if head is not None:
                logits, top_ids = largest(head(run), candidates)
            else:
                assert run.top_ids is not None
                logits, top_ids = run.logits[:, -1], run.top_ids[:, -1]
            chosen = sampler.pick(logits, top_ids)
            if watch is not None:
                watch(run, chosen)
            yield chosen
            rows, sizes, cache = chosen[:, None], np.ones_like(sizes), run.cache

    return generator()


class _Text:
    """The growing text of one row: decodes, finds stop strings, and tells what is final."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], end: int | None) -> None:
        self.tokenizer, self.stop, self.end = tokenizer, stop, end
        self.ids: list[int] = []
        self.text, self.shown, self.done = "", 0, False

    def push(self, token: int, last: bool) -> str:
        """Add a token; return the text that is certain now and was not before."""
        if token == self.end:
            self.done = True
        else:
            self.ids.append(token)
            self.text = self.tokenizer.decode(self.ids)
        cut = min((at for s in self.stop if (at := self.text.find(s)) >= 0), default=None)
        if cut is not None:
            self.text, self.done = self.text[:cut], True
        certain = len(self.text)
        if not (self.done or last):
            certain -= self._pending()
        piece, self.shown = self.text[self.shown : certain], max(self.shown, certain)
        return piece

    def _pending(self) -> int:
        """Length of the tail that may still change: half a character, or half a stop string."""
        whole = self.text.rstrip("\ufffd")
        halves = (n for s in self.stop for n in range(1, len(s)) if whole.endswith(s[:n]))
        return len(self.text) - len(whole) + max(halves, default=0)


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
    head: Callable[[Run], Floats] | None = None,
    watch: Callable[[Run, Ints], None] | None = None,
) -> TextOrTexts:
    """Continue a prompt, or a batch of prompts of unequal length; returns the new text alone.

    greedy, temperature, top_k, top_p, seed: see `gpt2kit.sampling.Sampler`.
    stop:    a row ends before the first of these strings, or at `<|endoftext|>`.
    edits:   applied at every step, at absolute positions.
    on_text: called with (row, piece of text) as soon as the piece is certain.
    taps, head, watch: for looking at each step's run; see `steps`.
    Raises InputError before any work if a prompt is empty or does not fit the context.
    """
    sampler = Sampler(temperature, top_k, top_p, greedy, seed)
    stops = [stop] if isinstance(stop, str) else list(stop)
    if not all(stops):
        raise InputError("a stop string is empty; leave it out or give some text")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError("no prompts were given")
    ids = [encode(runner, p) for p in prompts]
    assert runner.tokenizer is not None
    texts = [_Text(runner.tokenizer, stops, runner.config.eos_token_id) for _ in prompts]
    tokens = steps(
        runner, ids, max_new_tokens=max_new_tokens, sampler=sampler, edits=edits, taps=taps,
        head=head, watch=watch,
    )  # fmt: skip
    for step, chosen in enumerate(tokens, start=1):
        for row, text in enumerate(texts):
            piece = "" if text.done else text.push(int(chosen[row]), step == max_new_tokens)
            if piece and on_text is not None:
                on_text(row, piece)
        if all(text.done for text in texts):
            break
    if isinstance(prompt, str):
        return texts[0].text
    return [text.text for text in texts]
