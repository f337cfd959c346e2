"""A model from the hub, or from its cache. What takes long says what it waits for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from gpt2kit.errors import CheckpointError
from gpt2kit.torch_engine.hub_errors import explain
from gpt2kit.torch_engine.waiting import quiet_library, say_what_takes_long, within
from gpt2kit.torch_engine.weight_files import WEIGHT_FILES, weight_files

SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
]


class HubError(CheckpointError):
    """The hub does not give a model. why: the reason in a few words."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


def from_hub(name: str, revision: str | None, seconds: float) -> Path:
    """The folder of a hub model: from the cache if it is complete there, else downloaded.

    seconds: in which the hub must answer; the download then takes as long as it takes. Raises
    HubError.
    """
    with _explained(name, revision):
        cached = _cached(name, revision)
    if cached and _is_whole(cached):
        return cached
    try:
        folder, why = _download(name, revision, seconds), "no weights there"
    except HubError as error:
        if cached is None:
            raise
        folder, why = cached, error.why
    if not weight_files(folder):
        raise HubError(
            f"{name}: the hub (without a network, its cache) has no GPT-2 weights under that name "
            f"({why})",
            why,
        )
    return folder


def _cached(name: str, revision: str | None) -> Path | None:
    """The snapshot's folder in the cache; files may be missing in it."""
    import huggingface_hub  # takes a tenth of a second, which a local folder does not need

    config = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _is_whole(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except CheckpointError:  # a shard is missing: the download was interrupted
        return False


def _download(name: str, revision: str | None, seconds: float) -> Path:
    """Download what is missing; returns the snapshot's folder."""
    host = hub_host()
    with _explained(name, revision), quiet_library(host):
        with say_what_takes_long(lambda: f"waiting for {host} to answer about {name}"):
            sizes = within(seconds, lambda: _ask(name, revision, seconds / 2))
        download = Download(name, revision, sizes)
        with say_what_takes_long(lambda: f"downloading {name} from {host}: {download.progress()}"):
            return download.run()


def hub_host() -> str:
    """Where the hub is: huggingface.co, or the host that HF_ENDPOINT names."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc or constants.ENDPOINT


def _ask(name: str, revision: str | None, timeout: float) -> dict[str, int]:
    """The files to download, and their sizes in bytes.

    Each of two requests is made once, and waits for `timeout` seconds: one for the list of files,
    and one to see that files come from there too.
    """
    import huggingface_hub as library
    from huggingface_hub.errors import FileMetadataError

    info = library.HfApi().model_info(name, revision=revision, files_metadata=True, timeout=timeout)
    config = library.hf_hub_url(name, "config.json", revision=revision)
    if library.get_hf_file_metadata(config, timeout=timeout).commit_hash is None:
        raise FileMetadataError("the answer names no commit")
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return {file: sizes[file] for file in wanted(sizes)}


def wanted(files: Collection[str]) -> list[str]:
    """The files of a repository that a model needs; the weights come last."""
    small = [file for file in SMALL_FILES if file in files]
    for name in WEIGHT_FILES:
        if name in files:
            stem, _, suffix = name.removesuffix(".index.json").rpartition(".")
            index = name.endswith(".index.json")
            shards = [f for f in files if f.startswith(f"{stem}-") and f.endswith(f".{suffix}")]
            return [*small, name, *sorted(shards if index else ())]
    return small


class Download:
    """The download of a snapshot's files, one after the other.

    sizes: file -> bytes. The first file fixes the commit that all others are of.
    """

    def __init__(self, name: str, revision: str | None, sizes: dict[str, int]) -> None:
        self.name, self.revision, self.sizes = name, revision, sizes
        self.file, self.whole = "", 0  # what is being loaded; bytes of the files before
        self.folder: Path | None = None
        self.seen = -1  # bytes, when `progress` was last called

    def run(self) -> Path:
        """Download all files that are not in the cache; returns their folder."""
        import huggingface_hub

        for file, size in self.sizes.items():
            self.file = file
            revision = self.folder.name if self.folder else self.revision
            path = huggingface_hub.hf_hub_download(self.name, file, revision=revision)
            self.folder = Path(path).parent
            self.whole += size
        assert self.folder is not None  # there is a config.json
        return self.folder

    def progress(self) -> str:
        """How far it is; and whether nothing has come since the last call."""
        parts = self.folder.parents[1].glob("blobs/*.incomplete") if self.folder else ()
        done = self.whole + max((part.stat().st_size for part in parts), default=0)
        stalled = "; no new piece of 10 MB since the last line" if done == self.seen else ""
        self.seen = done
        return f"{self.file}, {done / 1e6:.1f} of {sum(self.sizes.values()) / 1e6:.1f} MB{stalled}"


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Raise a HubError in place of what huggingface_hub raises."""
    try:
        yield
    except Exception as error:
        message, why = explain(error, name, revision, hub_host())
        raise HubError(message, why) from error
