"""The portable graph: standard operators, and a cache that comes out longer than it went in."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.engine.caches import OnnxCache
from exporters.engine.edit_feeds import edit_feeds
from exporters.engine.graph import Graph, GraphCall, Request
from exporters.engine.key_slots import close_gaps
from exporters.engine.run_chunks import last_logits
from gpt2kit.runner import Run


class PortableGraph(Graph[OnnxCache]):
    """Runs all columns at once. Padding leaves gaps in the cache, which its `slots` tell apart."""

    cache_type = OnnxCache

    def new_cache(self, batch_size: int, length: int) -> OnnxCache:
        """See `Graph.new_cache`; nothing is allocated until a run."""
        slots, lengths = np.zeros((batch_size, 0), bool), np.zeros(batch_size, np.int64)
        return OnnxCache(self.empty(batch_size), slots, lengths, length)

    def run(self, request: Request[OnnxCache]) -> Run:
        """See `Graph.run`."""
        batch, cache = request.batch, request.cache
        before = cache or self.new_cache(len(batch.ids), self.config.n_positions)
        is_token = np.arange(batch.ids.shape[1]) < batch.lengths[:, None]
        slots = np.concatenate([before.slots, is_token], axis=1)
        call = GraphCall(
            batch=batch,
            mask=slots,
            past=before.past,
            outputs=request.outputs,
            presents={} if cache is None else dict.fromkeys(self.present_names),
            edits=edit_feeds(request.edits, self.config, request.chunk, self.dtype, slots),
        )
        values = self.execute(call)
        run = self._result(request, slots, values[: len(request.outputs)])
        if cache is None:
            return run
        cache.spent = True
        present, ends = values[len(request.outputs) :], batch.starts + batch.lengths
        advanced = OnnxCache(present, slots, ends, cache.max_length)
        return Run(run.logits, run.taps, advanced)

    def _result(
        self, request: Request[OnnxCache], slots: NDArray[np.bool_], values: list[ort.OrtValue]
    ) -> Run:
        """Logits and taps, keys at absolute positions."""
        batch = request.batch
        arrays = {name: value.numpy() for name, value in zip(request.outputs, values, strict=True)}
        logits = arrays.pop("logits", np.empty((*batch.ids.shape, 0), np.float32))
        if request.last_only:
            logits = last_logits(logits, batch.lengths)
        taps = {tap: close_gaps(x, tap, slots, batch.end) for tap, x in arrays.items()}
        return Run(logits, self.tap_dict(taps), None)
