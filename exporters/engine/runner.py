"""The onnxruntime engine: a Runner over an exported .onnx file. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray

from exporters.engine.carried import check_taps, edited_taps
from exporters.engine.file_sessions import FileSessions
from exporters.engine.fused import FusedGraph
from exporters.engine.graph import Graph, Request
from exporters.engine.ort_values import ELEMENT, as_float32
from exporters.engine.portable import PortableGraph
from exporters.engine.readout_sessions import ReadoutSessions, Unembedding
from exporters.file.agreement import check_agreement
from exporters.file.metadata import FileMetadata
from exporters.file.names import sidecar_folder
from exporters.file.stored_weights import StoredWeights
from gpt2kit.batch import Ids, KVCache, cache_length, check_run
from gpt2kit.checks import check_integer
from gpt2kit.defaults import Default
from gpt2kit.errors import EngineError
from gpt2kit.logits import largest
from gpt2kit.readout import Floats, Readout, check_residual, tiled
from gpt2kit.runner import Run
from gpt2kit.tokenizer import Tokenizer

GRAPHS: dict[str, type[Graph[Any]]] = {"portable": PortableGraph, "fused": FusedGraph}


def open_onnx(
    path: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None
) -> OnnxRunner:
    """Open a file that `export_onnx` made; its tokenizer.json is read from where an export puts it.

    device: "cpu", "cuda", or "auto": CUDA where it works and can run this file, else the CPU.
    threads: for the CPU; by default one for each physical core.
    Raises EngineError if the file or the device cannot be used, saying what to do.
    """
    if threads is not None:
        check_integer("threads", threads)
    return OnnxRunner(FileSessions.open(path, device, threads))


class OnnxRunner:
    """A Runner on onnxruntime: it checks what a run asks for, and hands it to the file's graph.

    taps, edits: what the file carries. dtype: of the computation. profile: "portable" or "fused".
    quantize: "int8", …, or None.
    """

    def __init__(self, sessions: FileSessions) -> None:
        self.sessions = sessions
        stored = self.session.get_modelmeta().custom_metadata_map
        self.metadata = meta = FileMetadata.from_metadata(stored, self.path)
        if sessions.model is not None:
            check_agreement(sessions.model, meta, self.path)
        self.config, self.source = meta.config, meta.source
        self.taps, self.edits = meta.taps, meta.edits
        self.dtype, self.profile, self.quantize = meta.dtype, meta.profile, meta.quantize
        self.precision, self.weights_sha256 = meta.precision, meta.weights_sha256
        self.tokenizer = _tokenizer_of(self.path)
        self.graph = graph_of(sessions, meta)

    def __repr__(self) -> str:
        c = self.config
        return (
            f"OnnxRunner({self.path.name}: {self.source}, {c.n_layer} layers, {c.n_head} heads, "
            f"d_model {c.n_embd}, {self.profile} {self.precision} on {self.provider}, "
            f"{self.threads} threads, {len(self.taps)} taps, {len(self.edits)} edits)"
        )

    @property
    def path(self) -> Path:
        """The exported file."""
        return self.sessions.path

    @property
    def session(self) -> ort.InferenceSession:
        """The lean session, which gives only the taps of the residual stream."""
        return self.sessions.lean

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "cuda"."""
        return self.sessions.device

    @property
    def provider(self) -> str:
        """See `FileSessions.provider`."""
        return self.sessions.provider

    @property
    def threads(self) -> int:
        """See `FileSessions.threads`."""
        return self.sessions.threads

    @property
    def run_options(self) -> ort.RunOptions:
        """Options to pass to `session.run` when calling it directly."""
        return self.sessions.run_options

    @property
    def cuda_graphs(self) -> bool:
        """Whether decode steps are captured as CUDA graphs."""
        return self.sessions.cuda_graphs

    def carrying(self, outputs: Iterable[str]) -> ort.InferenceSession:
        """A session that gives these outputs of the file: `session`, if it does."""
        return self.sessions.carrying(outputs)

    def run(
        self,
        ids: Ids,
        *,
        taps: str | Iterable[str] = (),
        edits: Sequence[Any] = (),
        cache: KVCache | None = None,
        lengths: ArrayLike | None = None,
        last_only: bool = False,
        top_k: int | None = None,
    ) -> Run:
        """See `Runner.run`."""
        given = check_run(
            self.config, self.graph.cache_type, ids,
            taps=taps, edits=edits, cache=cache, lengths=lengths, last_only=last_only, top_k=top_k,
        )  # fmt: skip
        edited = edited_taps(given.edits, self.edits, self.config.n_layer, self.path)
        check_taps(given.taps, self.taps, self.path)
        outputs = given.taps
        # onnxruntime must compute some output: logits, unless there are taps or a cache.
        if top_k != 0 or not (outputs or cache is not None):
            outputs = ("logits", *outputs)
        run = self.graph.run(
            Request(
                given.batch, given.taps, given.edits, given.cache,
                outputs=outputs, edited=edited, last_only=last_only, top_k=top_k,
            )
        )  # fmt: skip
        if top_k is None or run.top_ids is not None:
            return run
        logits, top_ids = largest(run.logits, top_k)
        return replace(run, logits=logits, top_ids=top_ids)

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """An empty cache for `batch_size` rows of at most `max_length` positions."""
        length = cache_length(batch_size, max_length, self.config)
        cache: KVCache = self.graph.new_cache(batch_size, length)
        return cache

    def empty(self, batch_size: int, length: int = 0) -> list[ort.OrtValue]:
        """See `Graph.empty`."""
        return self.graph.empty(batch_size, length)

    def read(self, value: ort.OrtValue) -> NDArray[np.float32]:
        """A value of the graph as float32, wherever it is and whatever its dtype."""
        return as_float32(value, self.device)

    def readout(
        self,
        resid: Floats,
        *,
        top_k: int = Default(5),
        targets: ArrayLike | None = None,
        reference: Floats | None = None,
    ) -> Readout:
        """See `Runner.readout`; computed by onnxruntime from the file's own weights."""
        self.sessions.state.check_in_place()
        return tiled(
            resid,
            targets,
            reference,
            config=self.config,
            dtype=self.dtype,
            top_k=top_k,
            read=self._readout.sums,
            vectors=self._readout.vectors,
        )

    def unembed(self, resid: Floats) -> Floats:
        """See `Runner.unembed`."""
        resid = check_residual(resid, self.config.n_embd, self.dtype)
        self.sessions.state.check_in_place()
        logits = self._unembedding.logits(resid.reshape(-1, resid.shape[-1]))
        return logits.reshape(*resid.shape[:-1], self.config.vocab_size)

    def weight(self, name: str) -> Floats:
        """See `Runner.weight`; read from the file each time."""
        self.sessions.check_unchanged()
        return self._weights.read(name)

    @cached_property
    def _readout(self) -> ReadoutSessions:
        self.sessions.check_unchanged()
        return ReadoutSessions(self.path, self.config, self.device, self.threads)

    @cached_property
    def _unembedding(self) -> Unembedding:
        self.sessions.check_unchanged()
        return Unembedding(self.path, self.config, self.device, self.threads)

    @cached_property
    def _weights(self) -> StoredWeights:
        return StoredWeights(self.path)


def _tokenizer_of(path: Path) -> Tokenizer | None:
    """The tokenizer of a file; older exports have it beside a file in a folder called `onnx`."""
    found = Tokenizer.from_folder(sidecar_folder(path))
    return Tokenizer.from_folder(path.parent) if found is None else found


def graph_of(sessions: FileSessions, meta: FileMetadata) -> Graph[Any]:
    """The graph of a file's profile. Raises EngineError for a profile or dtype that is unknown."""
    if meta.profile not in GRAPHS or meta.dtype not in ELEMENT:
        raise EngineError(
            f"{sessions.path}: profile {meta.profile!r} and dtype {meta.dtype!r} are not ones that "
            "this version of gpt2kit runs; export it again"
        )
    return GRAPHS[meta.profile](sessions, meta.config, meta.dtype)
