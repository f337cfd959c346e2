"""Edits as inputs of a graph: `{tap}.keep` and `{tap}.add`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.engine.key_slots import spread_keys
from exporters.file.names import edit_names, is_edit_input
from gpt2kit.config import GPT2Config
from gpt2kit.edit_arrays import Chunk, affine
from gpt2kit.edits import Edit
from gpt2kit.taps import SCORES, axes_of

EditFeeds = Mapping[str, NDArray[np.float32]]  # input -> value, for the edits of one run


def edit_feeds(
    edits: Sequence[Edit],
    config: GPT2Config,
    chunk: Chunk,
    dtype: str,
    slots: NDArray[np.bool_] | None = None,
) -> EditFeeds:
    """The inputs that make these edits in one run. Raises EditError if an edit does not fit.

    dtype: of the computation.
    slots: (batch, slots), which places of the cache hold a token, if rows may have gaps.
    """
    feeds = {}
    for tap, keep_and_add in affine(edits, config, chunk, dtype).items():
        for name, value, identity in zip(edit_names(tap), keep_and_add, (1, 0), strict=True):
            if slots is not None and axes_of(tap) == SCORES:
                value = spread_keys(value, slots, fill=identity)
            feeds[name] = np.ascontiguousarray(value, np.float32)
    return feeds


def required_identities(session: ort.InferenceSession) -> EditFeeds:
    """Identity feeds for the edits of a file whose edits are required inputs; else empty."""
    names = [value.name for value in session.get_inputs()]  # optional inputs are not among them
    return {name: identity_feed(name) for name in filter(is_edit_input, names)}


def identity_feed(name: str) -> NDArray[np.float32]:
    """The value of one input of an edit that changes nothing: 1 for keep, 0 for add."""
    tap, part = name.rsplit(".", 1)
    return np.full((1,) * len(axes_of(tap)), float(part == "keep"), np.float32)
