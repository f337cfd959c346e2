"""The graph as other software feeds it: optimum, onnxruntime-genai, transformers.js.

Such a client pads on the left, passes one mask over all cached slots, and takes a cache that comes
out longer than it went in. `OnnxRunner` does none of this, so the parity check does it here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.engine.runner import OnnxRunner
from exporters.file.names import past_names, present_names
from exporters.parity.cases import Steps
from exporters.parity.token_rows import TokenRows, row_axes, select_tokens, token_rows
from gpt2kit.batch import KVCache
from gpt2kit.readout import Ints
from gpt2kit.torch_engine.runner import TorchRunner


class OtherClient:
    """Runs the graph step by step.

    held: (batch, slots) which slots of the cache hold a token.
    """

    def __init__(self, onnx: OnnxRunner, rows: int) -> None:
        self.onnx, self.past = onnx, onnx.empty(rows)
        self.held = np.zeros((rows, 0), bool)

    def step(self, ids: Ints, valid: NDArray[np.bool_]) -> dict[str, ort.OrtValue]:
        """Every output of the graph for (batch, pos) ids, some of them padding, by name."""
        onnx = self.onnx
        self.held = np.concatenate([self.held, valid], axis=1)
        session = onnx.carrying(onnx.taps)
        names = [output.name for output in session.get_outputs()]
        values = session.run_with_ort_values(names, self._feeds(ids), onnx.run_options)
        outputs = dict(zip(names, values, strict=True))
        self.past = [outputs[name] for name in present_names(onnx.config.n_layer)]
        return outputs

    def _feeds(self, ids: Ints) -> dict[str, ort.OrtValue]:
        """The inputs of the graph; positions are counted from the mask."""
        positions = np.maximum(self.held.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        mask = self.held.astype(np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feeds |= self.onnx.graph.identities  # required edits
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        past = zip(past_names(self.onnx.config.n_layer), self.past, strict=True)
        return values | dict(past)


def run_other_client(
    steps: Steps, reference: TorchRunner, onnx: OnnxRunner
) -> Iterator[tuple[TokenRows, TokenRows]]:
    """Torch and ONNX after each step; torch runs every row by itself, without padding."""
    rows = len(steps[0][0])
    client = OtherClient(onnx, rows)
    caches: list[KVCache] = [reference.new_cache(1) for _ in range(rows)]
    for ids, lengths in steps:
        padded, valid = pad_left(ids, lengths)
        outputs = client.step(padded, valid)
        alone: list[TokenRows] = []
        for row, cache in enumerate(caches):
            starts = cache.lengths
            run = reference.run(padded[row][valid[row]], taps=onnx.taps, cache=cache)
            assert run.cache is not None
            caches[row] = run.cache
            alone.append(token_rows(run, starts, onnx))
        expected = {name: [parts[name][0] for parts in alone] for name in alone[0]}
        masks = list(zip(valid, client.held, strict=True))
        got = {
            name: [
                select_tokens(x, row_axes(name), *mask)
                for x, mask in zip(onnx.read(value), masks, strict=True)
            ]
            for name, value in outputs.items()
        }
        yield expected, got


def pad_left(ids: Ints, lengths: Ints | None) -> tuple[Ints, NDArray[np.bool_]]:
    """Right-padded rows (batch, pos) with their padding on the left, and which columns are tokens.

    Without lengths, every column is a token.
    """
    width = ids.shape[1]
    sizes = np.full(len(ids), width) if lengths is None else lengths
    padded = np.zeros_like(ids)
    for new, old, size in zip(padded, ids, sizes, strict=True):
        new[width - size :] = old[:size]
    return padded, np.arange(width) >= width - sizes[:, None]
