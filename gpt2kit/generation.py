"""Generation over any Runner: token by token, and as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from gpt2kit.batch import Ids, KVCache, prepare, token_rows
from gpt2kit.checks import check_function, check_integer, short
from gpt2kit.config import GPT2Config
from gpt2kit.defaults import Default
from gpt2kit.edit_arrays import Chunk, affine, listed
from gpt2kit.edits import Edit
from gpt2kit.errors import InputError
from gpt2kit.finite import finite_run, has_finite_values
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
    window: int | None = None,
) -> Iterator[Ints]:
    """Yield the next token of every row, (batch,), step by step.

    head:   computes the logits to choose from, (batch, vocab), from a run that holds `taps`. The
            engine then leaves out its own logits.
    watch:  called with each step's run, which holds `taps`, and the tokens chosen from it.
    window: see `generate`.
    Raises InputError before the first step if the rows and the new tokens do not fit the context,
    and EditError if an edit does not reach as far as the rows will.
    """
    check_function("head", head)
    check_function("watch", watch)
    config = runner.config
    sampler.check(config.vocab_size)
    check_window(window, config)
    texts = token_rows(ids, lengths)
    rows = [_last(text, window) for text in texts]
    longest = prepare(rows, None, None, config).end
    count = fit_new_tokens(max_new_tokens, longest, config, window)
    positions = longest + count - 1  # the last new token is never fed back
    if window is not None:
        positions = min(positions, window)
    if positions > config.n_positions:
        raise InputError(
            f"{longest} prompt tokens and {count} new ones need {positions} positions, the context "
            f"holds {config.n_positions}; shorten the prompt, ask for fewer, or give a window"
        )
    _check_reach(edits, runner, len(rows), positions)
    candidates = sampler.candidates(config.vocab_size)
    top_k = 0 if head is not None else None if sampler.looks_back else candidates
    run = partial(_run_step, runner, {"edits": edits, "taps": taps, "top_k": top_k})
    choose = partial(_choose, sampler, head, candidates)
    new_cache = partial(runner.new_cache, len(rows), positions)
    return _step_by_step(run, new_cache, texts, count, choose, watch, window)


def check_window(window: int | None, config: GPT2Config) -> None:
    """Raise InputError unless `window` is None or a number of positions of the context."""
    if window is not None:
        check_integer("window", window, 1, config.n_positions)


def fit_new_tokens(asked: int, longest: int, config: GPT2Config, window: int | None) -> int:
    """The number of new tokens: a `Default` is at most what the context has room for."""
    if window is None and isinstance(asked, Default):
        asked = min(asked, max(1, config.n_positions - longest + 1))
    return check_integer("max_new_tokens", asked)


def _last(text: list[int], window: int | None) -> list[int]:
    """The tokens that the model reads."""
    return text if window is None else text[-window:]


def _check_reach(edits: Sequence[Edit], runner: Runner, batch_size: int, positions: int) -> None:
    """Raise EditError if an edit does not fit the last step, which has the most positions."""
    last = Chunk(np.full(batch_size, positions - 1), 1, positions, cached=True)
    given = [edit for edit in listed(edits) if isinstance(edit, Edit)]
    affine(given, runner.config, last, runner.dtype)


def _run_step(
    runner: Runner, options: dict[str, Any], rows: Ids, cache: KVCache | None, read: list[list[int]]
) -> Run:
    """Run the next tokens of each row.

    options: of every step. read: all tokens that the cache and `rows` hold. Raises NonFiniteError
    if a logit or a tap is NaN or infinite; `read` is then run again to say where.
    """
    step = runner.run(rows, lengths=None, cache=cache, last_only=True, **options)
    if not has_finite_values(step):
        finite_run(runner, read, cached=True, last_only=True, **options)
    return step


def _step_by_step(
    run: Callable[..., Run],
    new_cache: Callable[[], KVCache],
    texts: list[list[int]],
    count: int,
    choose: Callable[[Run, list[list[int]]], Ints],
    watch: Watch | None,
    window: int | None,
) -> Iterator[Ints]:
    """Run, choose, yield, and feed back what was chosen.

    Positions restart in a window that has slid, so that no key or value in the cache is right any
    more: the whole window runs again.
    """
    rows: Ids = [_last(text, window) for text in texts]
    cache: KVCache | None = new_cache()
    for _ in range(count):
        step = run(rows, cache, [_last(text, window) for text in texts])
        chosen = choose(step, texts)
        if watch is not None:
            watch(step, chosen)
        yield chosen
        for text, token in zip(texts, chosen.tolist(), strict=True):
            text.append(token)
        if window is not None and max(map(len, texts)) > window:
            rows, cache = [_last(text, window) for text in texts], new_cache()
        else:
            rows, cache = chosen[:, None], step.cache


def _choose(
    sampler: Sampler, head: Head | None, candidates: int, step: Run, texts: list[list[int]]
) -> Ints:
    """The next token of every row, (batch,), from a step's run."""
    if head is None and not sampler.looks_back:
        assert step.top_ids is not None
        return sampler.pick(step.logits[:, -1], step.top_ids[:, -1])
    logits = step.logits[:, -1] if head is None else head(step)
    return sampler.pick(*largest(sampler.look_back(logits, texts), candidates))


def generate(
    runner: Runner,
    prompt: TextOrTexts,
    *,
    max_new_tokens: int = Default(40),
    greedy: bool = False,
    temperature: float = 1.0,
    top_k: int | None = Default(50),
    top_p: float = 1.0,
    seed: int | None = None,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    window: int | None = None,
    stop: str | Sequence[str] = (),
    edits: Sequence[Edit] = (),
    on_text: Callable[[int, str], None] | None = None,
    taps: str | Iterable[str] = (),
    head: Head | None = None,
    watch: Watch | None = None,
) -> TextOrTexts:
    """Continue a prompt, or a batch of prompts of unequal length; return the new text alone.

    max_new_tokens: by default 40, or fewer where the context has less room.
    greedy, temperature, top_k, top_p, seed, repetition_penalty, no_repeat_ngram_size: see
             `gpt2kit.sampling.Sampler`.
    window:  let the text grow longer than the context: the model reads its last `window` tokens,
             at positions from 0. Once the text is longer than that, every token costs a run of
             the whole window, and edits and taps count their positions in it.
    stop:    a row ends before the first of these strings, or at a token that ends a text.
    edits:   applied at every step, at absolute positions.
    on_text: called with (row, piece of text) as soon as the piece can no longer change.
    taps, head, watch: see `steps`; for looking at each step's run.
    Raises InputError before any work if a prompt is empty or does not fit the context, and
    NonFiniteError at a step whose logits, or taps, are NaN or infinite.
    """
    sampler = Sampler(
        temperature, top_k, top_p, greedy, seed, repetition_penalty, no_repeat_ngram_size
    )
    check_function("on_text", on_text)
    stops = _stops(stop)
    prompts = [prompt] if isinstance(prompt, str) else _listed("prompt", prompt)
    if not prompts:
        raise InputError("no prompts were given")
    check_window(window, runner.config)
    ids = [encode(runner, p, window=window) for p in prompts]
    count = fit_new_tokens(max_new_tokens, max(map(len, ids)), runner.config, window)
    tokenizer, ends = tokenizer_of(runner), runner.config.end_tokens
    texts = [StreamedText(tokenizer, stops, ends) for _ in prompts]
    tokens = steps(
        runner, ids, max_new_tokens=count, sampler=sampler, edits=edits, taps=taps,
        head=head, watch=watch, window=window,
    )  # fmt: skip
    _grow(texts, tokens, count, on_text)
    return texts[0].text if isinstance(prompt, str) else [text.text for text in texts]


def _grow(
    texts: Sequence[StreamedText],
    tokens: Iterable[Ints],
    count: int,
    on_text: Callable[[int, str], None] | None,
) -> None:
    """Add `count` tokens to each text, or fewer if all texts end before."""
    for step, chosen in enumerate(tokens, start=1):
        _push(texts, chosen, on_text, last=step == count)
        if all(text.done for text in texts):
            break


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


def _stops(given: Any) -> list[str]:
    """One text or several, as a list. Raises InputError for anything else."""
    texts = [given] if isinstance(given, str) else _listed("stop", given)
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"stop: {short(text)} is not text")
    if not all(texts):
        raise InputError("a stop string is empty; leave it out or give some text")
    return texts


def _listed(name: str, given: Any) -> list[Any]:
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise InputError(f"{name} = {short(given)} must be a text or a list of texts")
    return list(given)
