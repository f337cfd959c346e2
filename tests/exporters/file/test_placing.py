"""Files are moved to their places all or none, whenever the process fails or dies."""

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from exporters import open_onnx
from exporters.file import placing
from exporters.file.drafts import draft_folder, sweep
from exporters.file.placing import check_free, check_target, place
from gpt2kit.errors import ExportError
from tests.conftest import close
from tests.exporters.file.conftest import small_runner

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files and signals")
NEW = {
    "beside": {
        "m.onnx": "new model",
        "m.onnx_data": "new data",
        "m.onnx.parity.json": "report",
    },
    "sidecars": {"config.json": "new config", "tokenizer.json": "new tokenizer"},
}
OLD = {name: f"old {name}" for part in NEW.values() for name in part} | {"m.onnx.data": "old"}


def write_draft(draft: Path) -> None:
    for part, files in NEW.items():
        for name, text in files.items():
            (draft / part / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones included."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_text() for file in files}


@pytest.fixture(params=["", "onnx"])
def target(request, tmp_path) -> Path:
    """The place of an ONNX file, in a plain folder and in one called `onnx`."""
    folder = tmp_path / "out" / request.param
    folder.mkdir(parents=True)
    return folder / "m.onnx"


def write_older(target: Path) -> None:
    for name, text in OLD.items():
        home = target.parent if name.startswith("m.onnx") else placing.sidecar_folder(target)
        (home / name).write_text(text)


@pytest.mark.parametrize("older", [True, False])
def test_files_move_to_their_places(target, tmp_path, older):
    if older:
        write_older(target)
    with draft_folder(target) as draft:
        write_draft(draft)
        place(draft, target, ["m.onnx.data"] if older else [])
    above = placing.sidecar_folder(target)
    assert {name: (target.parent / name).read_text() for name in NEW["beside"]} == NEW["beside"]
    assert {name: (above / name).read_text() for name in NEW["sidecars"]} == NEW["sidecars"]
    assert len(content(tmp_path)) == 5


class Steps:
    """Lets a number of changes to the file system pass, then raises once."""

    def __init__(self, monkeypatch, error: BaseException, links: bool) -> None:
        self.left, self.error, self.links = -1, error, links
        for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "touch"), (os, "link")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name), name))

    def counted(self, real, name):
        def call(*args, **options):
            if name == "link" and not self.links:
                raise OSError(errno.EPERM, "no hard links here")
            self.left -= 1
            if self.left == -1:
                raise self.error
            return real(*args, **options)

        return call


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken disk"), KeyboardInterrupt()])
def test_a_failure_at_any_step_puts_everything_back(
    target, tmp_path, monkeypatch, links, older, error
):
    steps, restored = Steps(monkeypatch, error, links), 0
    for passed in range(100):
        shutil.rmtree(tmp_path / "out")
        target.parent.mkdir(parents=True)
        if older:
            write_older(target)
        before, placed, steps.left = content(tmp_path), False, -1
        with suppress(ExportError, KeyboardInterrupt), draft_folder(target) as draft:
            write_draft(draft)
            steps.left = passed
            place(draft, target, ["m.onnx.data"] if older else [])
            placed = True
        if steps.left >= 0:  # it has fewer steps than that
            break
        if not placed:
            restored += 1
            assert content(tmp_path) == before, passed
        else:  # the step had another way
            assert (older, links) == (True, True)
            assert content(tmp_path)[str(target.relative_to(tmp_path))] == "new model"
    assert placed
    assert restored >= 7


def broken(*_, **__):
    raise OSError(errno.EIO, "broken disk")


def place_new(target: Path) -> None:
    with draft_folder(target) as draft:
        write_draft(draft)
        place(draft, target)


def test_a_failure_is_one_line(tmp_path, monkeypatch):
    write_older(target := tmp_path / "m.onnx")
    monkeypatch.setattr(os, "link", broken)
    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(ExportError, match=r"m\.onnx: not written: \[Errno 5\] broken disk$"):
        place_new(target)


def test_what_cannot_be_put_back_is_kept_and_named(target, tmp_path, monkeypatch):
    write_older(target)
    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(ExportError, match="in its folder `older` could not be put back"):
        place_new(target)
    monkeypatch.undo()
    (draft,) = target.parent.glob(".*")
    assert (draft / "older" / "beside" / "m.onnx").read_text() == OLD["m.onnx"]
    sweep(target.parent)
    assert {Path(name).name: text for name, text in content(tmp_path).items()} == OLD


# A process that is killed

KILLED = """
import os, signal, sys
from pathlib import Path
from exporters.file.drafts import draft_folder
from exporters.file.placing import place
import shutil
target, new, left = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def counted(real):
    def call(*args, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*args, **options)
    return call
with draft_folder(target) as draft:
    for file in new.iterdir():
        part = "beside" if file.name.startswith(target.name) else "sidecars"
        shutil.copyfile(file, draft / part / file.name)
    for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "link"), (shutil, "rmtree")):
        setattr(owner, name, counted(getattr(owner, name)))
    place(draft, target)
"""
IDS = [[1, 2, 3]]


def found(path: Path) -> str:
    """Which of the two models a file computes, with its own tokenizer; "" if there is no file."""
    if not path.exists():
        return ""
    runner = open_onnx(path, device="cpu")
    new = len(runner.tokenizer.encode("new!")) == 1
    close(runner.run(IDS).logits, small_runner(1.0 if new else 0.0).run(IDS).logits)
    return "new" if new else "old"


@POSIX
@pytest.mark.slow
def test_a_process_killed_at_any_step_leaves_no_mixed_files(pair, tmp_path):
    """Old and new models differ in one number; the new tokenizer has one token more."""
    old, new = (
        shutil.copytree(folder, tmp_path / name) for folder, name in zip(pair, "ab", strict=True)
    )
    tokenizer = json.loads((new / "tokenizer.json").read_text())
    added = {**tokenizer["added_tokens"][0], "content": "new!", "special": False}
    tokenizer["added_tokens"].append({**added, "id": tokenizer["added_tokens"][0]["id"] + 1})
    (new / "tokenizer.json").write_text(json.dumps(tokenizer))
    seen = []
    for passed in range(100):
        folder = shutil.copytree(old, tmp_path / str(passed))
        command = [sys.executable, "-c", KILLED, folder / "m.onnx", new, str(passed)]
        done = subprocess.run(command, capture_output=True, text=True)
        seen.append(found(folder / "m.onnx"))
        if done.returncode == 0:
            break
        assert (done.returncode, done.stderr) == (-9, "")
        assert [file.name for file in folder.glob(".*")] != []
        sweep(folder)
        whole = new if seen[-1] == "new" else old
        assert {f.name: f.read_bytes() for f in folder.iterdir()} == {
            f.name: f.read_bytes() for f in whole.iterdir()
        }
    assert seen[0] == "old"
    assert seen[-1] == "new"
    assert set(seen) == {"old", "", "new"}


# Drafts


def test_a_draft_of_a_dead_process_is_swept_and_that_of_a_live_one_is_not(tmp_path):
    target = tmp_path / "m.onnx"
    with draft_folder(target) as live:
        stale = tmp_path / ".m.onnx.abc.draft"
        (stale / "beside").mkdir(parents=True)
        (stale / "beside" / "m.onnx").write_text("half")
        unrelated = [tmp_path / ".m.onnx.draft", tmp_path / ".cache"]
        for folder in unrelated:
            folder.mkdir()
        (tmp_path / ".x.onnx.y.draft").write_text("a file")
        sweep(tmp_path)
        assert live.exists()
        assert not stale.exists()
        assert all(folder.exists() for folder in unrelated)
    assert not live.exists()


@POSIX
def test_a_link_that_looks_like_a_draft_is_left(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / ".m.onnx.x.draft").symlink_to(tmp_path / "precious")
    sweep(tmp_path)
    assert (tmp_path / "precious").exists()


def test_a_stale_draft_does_not_undo_what_somebody_has_put_there_since(tmp_path):
    target = tmp_path / "m.onnx"
    stale = tmp_path / ".m.onnx.abc.draft"
    for kind in ("beside", "older/beside"):
        (stale / kind).mkdir(parents=True)
        (stale / kind / "m.onnx").write_text(kind)
    target.write_text("of somebody")
    sweep(tmp_path)
    assert content(tmp_path) == {"m.onnx": "of somebody"}


def test_a_file_system_without_locks_still_has_drafts(tmp_path, monkeypatch):
    def unsupported(_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("exporters.file.drafts._lock", unsupported)
    with draft_folder(tmp_path / "m.onnx") as draft:
        sweep(tmp_path)
        assert draft.exists()
    assert not draft.exists()


# What is refused


@POSIX
def test_a_name_that_is_taken_by_something_else_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    check_free([tmp_path / "file", tmp_path / "none"])
    for name, words in (("folder", "is a folder"), ("pipe", "is not a file")):
        with pytest.raises(ExportError, match=f"{name}: {words}, and the export would replace it"):
            check_free([tmp_path / "file", tmp_path / name])


def test_both_folders_must_be_writable(target, monkeypatch):
    locked = placing.sidecar_folder(target)
    monkeypatch.setattr(os, "access", lambda folder, _: folder != locked)
    with pytest.raises(ExportError, match=f"the folder {locked} cannot be written to"):
        check_target(target)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a second file system")
def test_folders_on_two_disks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(placing, "sidecar_folder", lambda _: Path("/proc"))
    monkeypatch.setattr(os, "access", lambda *_: True)
    with pytest.raises(ExportError, match=r"/proc, where config\.json belongs, is on another"):
        check_target(tmp_path / "m.onnx")
