"""The fused graph: onnxruntime's GroupQueryAttention over a cache that is updated in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.engine.caches import InPlaceCache
from exporters.engine.decode_step import Decoder, StepGraph
from exporters.engine.edit_feeds import edit_feeds
from exporters.engine.graph import Graph, GraphCall, Request
from exporters.engine.run_chunks import join_outputs, last_logits, split_run
from exporters.engine.sessions import providers
from exporters.engine.topk_graph import TopK
from gpt2kit.batch import Batch
from gpt2kit.logits import largest
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Run
from gpt2kit.taps import SCORES, axes_of

# Tokens of one row that run together on a CPU. There the attention computes the scores of all keys
# of a run, even of keys that come later than the query; in long prompts that is most of the time.
CHUNK = 256


class FusedGraph(Graph[InPlaceCache]):
    """Runs long prompts in chunks on a CPU, and single tokens by a step that is bound once."""

    cache_type = InPlaceCache

    def new_cache(self, batch_size: int, length: int) -> InPlaceCache:
        """See `Graph.new_cache`; the whole length is allocated."""
        return InPlaceCache(self.empty(batch_size, length), np.zeros(batch_size, np.int64), length)

    def run(self, request: Request[InPlaceCache]) -> Run:
        """See `Graph.run`."""
        if request.cache is not None and _is_plain_step(request):
            return self._decode(request, request.cache)
        return self._run_chunks(request)

    # One token more in every row

    def _decode(self, request: Request[InPlaceCache], cache: InPlaceCache) -> Run:
        batch, decoder = request.batch, cache.decoder
        if decoder is None or decoder.session is not self.sessions.lean:  # another runner's
            decoder = Decoder(self._step_graph, cache.past, cache.max_length)
        feeds = edit_feeds(request.edits, self.config, request.chunk, self.dtype)
        logits, top_ids = self._take(
            self.sessions.attempt(lambda: decoder(batch, feeds)), request.top_k
        )
        cache.spent = True
        advanced = InPlaceCache(cache.past, batch.starts + 1, cache.max_length, decoder)
        return Run(logits, self.tap_dict({}), advanced, top_ids)

    @cached_property
    def _step_graph(self) -> StepGraph:
        return StepGraph(
            session=self.sessions.lean,
            device=self.sessions.device,
            vocab_size=self.config.vocab_size,
            past_names=self.past_names,
            present_names=self.present_names,
            identities=self.identities,
            run_options=self.sessions.run_options,
            cuda_graphs=self.sessions.cuda_graphs,
        )

    def _take(self, logits: ort.OrtValue, top_k: int | None) -> tuple[Floats, Ints | None]:
        """Copy all logits from the device, or only the k largest."""
        if top_k is None:
            return logits.numpy().copy(), None  # on the CPU, numpy() is a view
        if self.sessions.device == "cuda":
            return self._top_k(logits, top_k)
        return largest(logits.numpy(), top_k)

    @cached_property
    def _top_k(self) -> TopK:
        return TopK(providers(self.sessions.device))

    # Any number of tokens

    def _run_chunks(self, request: Request[InPlaceCache]) -> Run:
        batch, cache = request.batch, request.cache
        chunks = split_run(batch, self._chunk_size(request))
        if len(chunks) > 1:  # an edit that does not fit must be refused before any chunk has run
            edit_feeds(request.edits, self.config, request.chunk, self.dtype)
        past, presents = self._buffers(request, len(chunks))
        found = [
            self._run_chunk(request, chunk, columns, past, presents)
            for chunk, columns in zip(chunks, _logits_columns(request, chunks), strict=True)
        ]
        run = self._result(request, found)
        if cache is None:
            return run
        cache.spent = True
        ends = batch.starts + batch.lengths
        advanced = InPlaceCache(cache.past, ends, cache.max_length, cache.decoder)
        return Run(run.logits, run.taps, advanced)

    def _chunk_size(self, request: Request[InPlaceCache]) -> int:
        """Number of columns that run together."""
        rows, columns = map(int, request.batch.ids.shape)
        if rows > 1 and columns > 1 and request.batch.starts.any():
            return 1  # GroupQueryAttention continues a batch of rows by one token a run
        if rows > 1 or self.sessions.device != "cpu":
            return columns
        if request.cache is None and request.edits:
            return columns  # such an edit may count positions from the end of the run
        if any(_is_score(name) for name in request.outputs):
            return columns
        return CHUNK if columns > CHUNK else columns

    def _buffers(
        self, request: Request[InPlaceCache], chunks: int
    ) -> tuple[Sequence[ort.OrtValue], dict[str, ort.OrtValue | None]]:
        """The cache's keys and values before the run, and where the new ones are written.

        Without a cache, several chunks share buffers of this run, and one chunk keeps nothing.
        """
        (rows, columns), cache = request.batch.ids.shape, request.cache
        if cache is None and chunks == 1:
            return self.empty(rows), {}
        past = self.empty(rows, columns) if cache is None else cache.past
        return past, dict(zip(self.present_names, past, strict=True))

    def _run_chunk(
        self,
        request: Request[InPlaceCache],
        chunk: Batch,
        columns: NDArray[np.int64],
        past: Sequence[ort.OrtValue],
        presents: dict[str, ort.OrtValue | None],
    ) -> list[NDArray[Any]]:
        """The outputs of one chunk. columns: which of them get logits."""
        cached = request.cache is not None
        call = GraphCall(
            batch=chunk,
            mask=np.arange(chunk.end) < (chunk.starts + chunk.lengths)[:, None],
            past=past,
            outputs=request.outputs,
            presents=presents,
            edits=edit_feeds(request.edits, self.config, chunk.chunk(cached=cached), self.dtype),
            logits_positions=columns,
        )
        values = self.execute(call)[: len(request.outputs)]
        return [value.numpy() for value in values]

    def _result(self, request: Request[InPlaceCache], found: list[list[NDArray[Any]]]) -> Run:
        """Logits and taps of all chunks, joined."""
        batch = request.batch
        arrays = {
            name: join_outputs(parts, name, batch.end)
            for name, parts in zip(request.outputs, zip(*found, strict=True), strict=True)
        }
        rows, columns = batch.ids.shape
        given = 1 if request.last_only else columns
        logits = arrays.pop("logits", np.empty((rows, given, 0), np.float32))
        if request.last_only and logits.shape[1] > 1:
            logits = last_logits(logits, batch.lengths)
        return Run(logits, self.tap_dict(arrays), None)


def _is_plain_step(request: Request[InPlaceCache]) -> bool:
    """Whether the bound decode step can run this: one token a row, logits alone, and no edit of
    scores (its mask is as wide as the cache, so that scores would have more keys)."""
    return (
        request.batch.ids.shape[1] == 1
        and request.outputs == ("logits",)
        and not any(axes_of(tap) == SCORES for tap in request.edited)
    )


def _is_score(name: str) -> bool:
    return name != "logits" and axes_of(name) == SCORES


def _logits_columns(
    request: Request[InPlaceCache], chunks: Sequence[Batch]
) -> list[NDArray[np.int64]]:
    """For each chunk, the columns that get logits, (1, kept); -1 is the last token of each row."""
    none = np.zeros((1, 0), np.int64)
    if "logits" not in request.outputs:
        return [none] * len(chunks)
    rows = len(request.batch.ids)
    ragged = rows > 1 and len(chunks) > 1  # rows end in different chunks
    if request.last_only and not ragged:
        return [*[none] * (len(chunks) - 1), np.array([[-1]])]
    return [np.arange(chunk.ids.shape[1])[None] for chunk in chunks]
