"""The sessions behind `OnnxRunner.readout` and `OnnxRunner.unembed`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.engine.graph_builder import BuiltSession, GraphBuilder
from exporters.engine.readout_graph import Piece, sums_graph, unembedding_graph
from exporters.engine.readout_weights import QuantisedTable, ReadoutWeights
from exporters.engine.sessions import providers, session_options
from gpt2kit.config import GPT2Config
from gpt2kit.readout import Floats, Ints, Sums

# On a CPU, this many vectors meet this many tokens at a time: their logits stay within its caches.
VECTORS, WIDTH = 208, 2048
WHOLE_VECTORS = 320  # vectors that meet the whole vocabulary at a time
KERNEL_WIDTH = 16  # columns that a float32 product computes together; pieces are multiples of it


class Unembedding:
    """From a few vectors to all their logits."""

    def __init__(self, path: Path, config: GPT2Config, device: str, threads: int) -> None:
        graph = unembedding_graph(ReadoutWeights.read(path), config.layer_norm_epsilon)
        self._session = open_built(graph, device, threads)

    def logits(self, resid: Floats) -> Floats:
        """(vectors, d_model) -> (vectors, vocab)."""
        logits: Floats = self._session.run({"resid": _float32(resid)})["logits"]
        return logits


class ReadoutSessions:
    """Sums over the vocabulary, for `gpt2kit.readout.tiled`.

    On a CPU the unembedding is cut into pieces, so that the logits of a piece stay within the
    caches. The pieces are shared out among the threads, and each thread has a session of its own
    for its share: the operators that follow a product are too short to be worth a team of threads
    each. Quantised weights, half precision and GPUs take the vocabulary whole.

    vectors: how many vectors meet the vocabulary together.
    """

    def __init__(self, path: Path, config: GPT2Config, device: str, threads: int) -> None:
        weights, vocab_size = ReadoutWeights.read(path), config.vocab_size
        whole = device != "cpu" or not _is_float32(weights)
        self.vectors = WHOLE_VECTORS if whole else VECTORS
        shares = 1 if whole else min(threads, -(-vocab_size // WIDTH))
        self.width = vocab_size if whole else piece_width(vocab_size, shares)
        pieces = vocabulary_pieces(vocab_size, self.width)
        self._sessions = []
        for share in np.array_split(np.arange(len(pieces)), shares):
            part = [pieces[i] for i in share]
            graph = sums_graph(weights, config.layer_norm_epsilon, part, whole=whole)
            self._sessions.append(open_built(graph, device, threads // shares))
        self._pool = ThreadPoolExecutor(shares)

    def sums(self, resid: Floats, targets: Ints, refers: bool, top_k: int) -> Sums:
        """See `gpt2kit.readout.Read`."""
        feeds = sums_feeds(resid, targets, top_k)
        shares = list(self._pool.map(lambda session: session.run(feeds), self._sessions))
        found = {name: np.concatenate([part[name] for part in shares], -1) for name in shares[0]}
        found["chosen"] = shares[0]["chosen"]  # every share has computed the same
        return sums_from(found, feeds["targets"], targets.shape, refers, self.width)


def open_built(graph: GraphBuilder, device: str, threads: int) -> BuiltSession:
    """A session over a graph of the readout."""
    return BuiltSession(graph, session_options(threads), providers(device))


def piece_width(vocab_size: int, shares: int) -> int:
    """Tokens in a piece: at most about WIDTH, as many pieces for every share."""
    pieces = shares * -(-vocab_size // (shares * WIDTH))
    return KERNEL_WIDTH * -(-vocab_size // (KERNEL_WIDTH * pieces))


def vocabulary_pieces(vocab_size: int, width: int) -> list[Piece]:
    """The vocabulary in pieces of this width; the last one may be narrower."""
    return [Piece(i, min(width, vocab_size - i)) for i in range(0, vocab_size, width)]


def sums_feeds(resid: Floats, targets: Ints, top_k: int) -> dict[str, NDArray[Any]]:
    """Inputs of `sums_graph` for resid (row, group, d_model) and targets (row, group, n)."""
    rows, groups, n = targets.shape
    # Logits are relative to the first target's, so there must be one; token 0 will do.
    flat = targets.reshape(rows * groups, n) if n else np.zeros((rows * groups, 1), np.int64)
    return {
        "resid": _float32(resid.reshape(rows * groups, -1)),
        "targets": flat,
        "k": np.array([top_k]),
        "by_row": np.array([rows, groups, -1]),
        "others": np.array(flat.shape[1] - 1),
    }


def sums_from(
    found: dict[str, NDArray[Any]],
    targets: Ints,
    shape: Sequence[int],
    refers: bool,
    width: int,
) -> Sums:
    """The outputs of `sums_graph`, all pieces joined, as `Sums`.

    targets: as fed, (vectors, at least 1). shape: (row, group, n) of the targets that were asked
    for. width: tokens in a piece.
    """
    rows, groups, n = shape
    vectors, chosen = (rows, groups), found["chosen"]
    base, pieces = chosen[:, :1], found["high"].shape[1]
    log_z = found["high"] - np.log(found["most"])  # see `readout_graph.log_z_numpy`
    reference_mean = found["reference_mean"].reshape(rows, pieces, groups).swapaxes(0, 1)
    above = target_ranks(found, targets, width)
    return Sums(
        base=np.broadcast_to(base.reshape(vectors), (pieces, *vectors)),
        log_z=log_z.T.reshape(pieces, *vectors),
        mean=found["mean"].T.reshape(pieces, *vectors),
        reference_mean=reference_mean if refers else None,
        top=(found["top"] + base).reshape(*vectors, -1),
        top_ids=found["top_ids"].reshape(*vectors, -1),
        chosen=chosen[:, :n].reshape(*vectors, n),
        above=above[:, :n].reshape(*vectors, n),
    )


def target_ranks(found: dict[str, NDArray[Any]], targets: Ints, width: int) -> Ints:
    """(vectors, n) number of logits above each target's, from the counts of all pieces."""
    count, n = targets.shape
    rest = found["above_rest"].sum(-1).reshape(n - 1, count)
    above = np.concatenate([found["above_first"].sum(-1)[None], rest]).T
    # A target's own entry may be rounded to more than `chosen`; it is not above itself.
    own = found["own"].reshape(count, -1, n)  # (vectors, piece, n)
    own = np.take_along_axis(own, targets[:, None] // width, 1)[:, 0]
    itself = own > found["chosen"] - found["chosen"][:, :1]
    counted: Ints = np.nan_to_num(above).astype(np.int64) - itself
    return counted


def _is_float32(weights: ReadoutWeights) -> bool:
    return not isinstance(weights.table, QuantisedTable) and weights.gain.dtype == np.float32


def _float32(resid: Floats) -> NDArray[np.float32]:
    return resid.astype(np.float32, copy=False)
