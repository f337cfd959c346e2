"""The way to the hub, over HTTP: redirects, revisions, refusals, silence, cut downloads."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2kit.errors import CheckpointError
from gpt2kit.torch_engine import find as find_module
from gpt2kit.torch_engine import waiting
from gpt2kit.torch_engine.find import find
from tests.conftest import byte_tokenizer, write_checkpoint
from tests.gpt2kit.cli.support import POSIX
from tests.gpt2kit.torch_engine import hub_server
from tests.gpt2kit.torch_engine.hub_server import COMMITS, Hub, answers, cut, on, serve, stall

NAME = "someone/tiny"
CONTROL = "\x1b]0;title\x07"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    write_checkpoint(folder)
    (folder / "tokenizer.json").write_text(byte_tokenizer().to_json())
    (folder / "README.md").write_text("not needed")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def point_to(monkeypatch, url: str) -> None:
    """Let huggingface_hub, which reads its settings once, take this address for the hub."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, short timeouts, and no lines about waiting."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(f"{constants}.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(waiting, "PAUSES", (60.0,))
    return tmp_path / "cache"


@pytest.fixture
def talkative(cache, monkeypatch) -> None:
    """Lines about waiting come soon and often."""
    monkeypatch.setattr(waiting, "PAUSES", (0.3,))


@pytest.fixture
def hub(files, cache, monkeypatch):
    with serve(Hub(files)) as hub:
        point_to(monkeypatch, hub.url)
        yield hub


def refused(message: str, name: str = NAME, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError, match=message) as caught:
        find(name, revision)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_downloaded(folder: Path, files: dict[str, bytes]) -> None:
    """Every file that a model needs is there, whole; nothing half-written is left."""
    got = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert got == {name: files[name] for name in files if name != "README.md"}
    assert list(folder.parents[1].rglob("*.incomplete")) == []


# Names and revisions


@pytest.mark.parametrize("name", [NAME, "tiny", "old/name"])
def test_a_model_is_downloaded_once(hub, files, name, capsys):
    """`gpt2` has moved to `openai-community/gpt2`; the hub redirects."""
    hub.moved = {"tiny": NAME, "old/name": NAME}
    found = find(name)
    assert_downloaded(found.folder, files)
    assert str(found.source) == f"{name}@aaaaaaaaaaaa"
    asked = len(hub.requests)
    assert find(name) == found  # now from the cache
    assert len(hub.requests) == asked
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("revision", ["v1", "0123456", COMMITS["v1"]])
def test_a_revision_is_a_branch_a_tag_or_the_beginning_of_a_commit(hub, files, revision):
    found = find(NAME, revision)
    assert_downloaded(found.folder, files)
    assert found.source.revision == COMMITS["v1"]
    asked = len(hub.requests)
    assert find(NAME, revision) == found
    assert len(hub.requests) == asked


def test_shards_and_pickles_are_found(hub, files):
    weights = files["model.safetensors"]
    index = b'{"weight_map": {"a": "model-1-of-1.safetensors"}}'
    config = {"config.json": files["config.json"]}
    pickle = {"pytorch_model.bin": weights}
    shards = {"model.safetensors.index.json": index, "model-1-of-1.safetensors": weights}
    for number, (name, wanted, other) in enumerate([
        ("a/shards", shards, pickle),
        ("a/pickle", pickle, {"model.fp16.safetensors": weights}),
    ]):  # fmt: skip
        hub.name, hub.files = name, config | wanted | other
        assert {file.name for file in find(name).folder.iterdir()} == set(config | wanted), number


# Refusals: one line that says what is wrong


def test_an_unknown_name_is_told(hub):
    refused("x/y: no such model on the hub .or it needs a login", "x/y")


def test_an_unknown_revision_is_told(hub):
    refused("someone/tiny: the hub has no revision 'v9'", revision="v9")


def test_a_gated_model_is_told(hub):
    hub.gated = True
    refused("someone/tiny: its owners must allow the download; .* `hf auth login`")


def test_a_model_without_a_config_or_weights_is_told(hub, files):
    hub.files = {"model.safetensors": files["model.safetensors"]}
    refused("someone/tiny: the hub has no config.json")
    hub.files = {"config.json": files["config.json"]}
    refused("someone/tiny: the hub .* has no GPT-2 weights under that name .no weights there")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answers(503), "cannot be reached .127.0.0.1:[0-9]+ answers 503; try again later"),
        (answers(429, **{"Retry-After": "60"}), "answers 429: too many requests"),
        (answers(401), r"refuses access \(401\); check the token"),
        (answers(403), r"refuses access \(403\)"),
        (answers(418), "cannot be downloaded: .*418"),
        (answers(200), "127.0.0.1:[0-9]+ does not answer as the hub does"),
        (answers(511), "captive portal"),
        (hub_server.portal, "answers with a web page; is this a captive portal[?] Log in"),
        (hub_server.redirecting_portal, "answers with a web page; is this a captive portal[?]"),
    ],
)
def test_an_answer_that_is_no_model_is_told(hub, fault, message, capsys):
    hub.fault = fault
    refused(f"someone/tiny: .*{message}")
    assert capsys.readouterr().err == ""


def test_a_portal_that_lets_the_listing_pass_is_told(hub):
    hub.fault = on("/resolve/", hub_server.portal)
    refused("is this a captive portal")


def test_what_the_hub_says_cannot_control_the_terminal(hub, capsys):
    hub.fault = answers(429, **{"X-HF-Warning": f"topic; {CONTROL}"})
    refused("answers 429")
    notes = capsys.readouterr().err
    assert "title" in notes
    assert "\x1b" not in notes


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_refused_connection_is_told(cache, monkeypatch, url):
    point_to(monkeypatch, url)
    message = refused("someone/tiny: not a local folder, not in the cache, and the hub cannot be")
    assert url.removeprefix("http://") in message


def test_a_host_whose_first_address_refuses_is_reached(hub, files, monkeypatch):
    """Such as one whose IPv6 address, which comes first, leads nowhere."""
    usual = socket.getaddrinfo

    def ipv6_first(host, port, *rest, **options):
        ipv6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        return [ipv6, *usual(host, port, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", ipv6_first)
    point_to(monkeypatch, f"http://localhost:{hub.port}")
    hub.cdn = "127.0.0.1"
    assert_downloaded(find(NAME).folder, files)


# Waiting


@pytest.mark.parametrize("fault", [hub_server.silence, hub_server.trickle])
@pytest.mark.parametrize("request_", ["/api/", "HEAD"])
def test_auto_gives_up_on_a_silent_hub(hub, talkative, monkeypatch, request_, fault, capsys):
    monkeypatch.setattr(find_module, "AUTO_SECONDS", 1.0)
    hub.moved, hub.fault = {"gpt2": NAME}, on(request_, fault)
    start = time.monotonic()
    assert str(find("auto").source) == "bundled"
    assert time.monotonic() - start < 3
    *waits, fallback = capsys.readouterr().err.splitlines()
    host = f"127.0.0.1:{hub.port}"
    assert set(waits) == {f"gpt2kit: waiting for {host} to answer about gpt2 …"}
    assert f"({host} does not answer); using the small bundled model. For the real" in fallback


def test_auto_names_a_captive_portal(hub, capsys):
    hub.fault = hub_server.portal
    assert str(find("auto").source) == "bundled"
    assert "is this a captive portal? Log in with a browser); using" in capsys.readouterr().err


def test_auto_downloads_gpt2_where_the_hub_answers(hub, files):
    hub.moved = {"gpt2": NAME}
    assert_downloaded(find("auto").folder, files)


def test_a_named_model_waits_for_a_slow_hub(hub, talkative, files, monkeypatch, capsys):
    monkeypatch.setattr(find_module, "AUTO_SECONDS", 0.2)
    hub.fault = hub_server.slow
    assert_downloaded(find(NAME).folder, files)
    assert "waiting for 127.0.0.1" in capsys.readouterr().err


def test_a_named_model_does_not_fall_back(hub, monkeypatch):
    monkeypatch.setattr(find_module, "NAMED_SECONDS", 1.0)
    hub.fault = hub_server.silence
    refused("someone/tiny: .*the hub cannot be reached .127.0.0.1:[0-9]+ does not answer")


# Downloads that are cut or stall


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_cut_download_goes_on_where_it_was_cut(hub, files, file, capsys):
    hub.fault = on(f"GET .*/{file}", cut, times=1)
    assert_downloaded(find(NAME).folder, files)
    notes = capsys.readouterr().err
    assert "Trying to resume download" in notes
    assert "http://" not in notes
    assert all(line.startswith("gpt2kit: ") for line in notes.splitlines())


def test_a_stalled_download_says_what_it_waits_for_and_goes_on(hub, talkative, files, capsys):
    hub.fault = on("GET .*/model.safetensors", stall, times=1)
    assert_downloaded(find(NAME).folder, files)
    size = sum(len(content) for name, content in files.items() if name != "README.md")
    notes = capsys.readouterr().err
    assert f"downloading {NAME} from 127.0.0.1:{hub.port}: model.safetensors, " in notes
    assert f" of {size / 1e6:.1f} MB" in notes
    assert "no new piece of 10 MB since the last line" in notes


@pytest.mark.slow
def test_a_download_that_is_always_cut_is_one_line_and_leaves_nothing(hub, files, cache):
    hub.fault = on("GET .*/model.safetensors", lambda handler: handler.connection.close())
    refused("someone/tiny: .*the hub cannot be reached .127.0.0.1")
    assert list(cache.rglob("*.incomplete")) == []
    hub.fault = lambda _: False
    hub.requests.clear()
    assert_downloaded(find(NAME).folder, files)
    assert not [line for line in hub.requests if "tokenizer" in line]  # it was whole


@pytest.mark.slow
@POSIX
def test_ctrl_c_ends_a_stalled_download_and_leaves_nothing(files, tmp_path):
    command = [sys.executable, "-m", "gpt2kit.cli", "generate", "x", "--model", NAME]
    with serve(Hub(files, fault=on("GET .*/model.safetensors", stall))) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | env) as waits:
            assert b"downloading someone/tiny" in waits.stderr.readline()
            assert list(tmp_path.rglob("*.incomplete")) != []
            waits.send_signal(signal.SIGINT)
            assert waits.wait(timeout=5) in (1, 130)
    assert list(tmp_path.rglob("*.incomplete")) == []


def test_a_file_of_another_size_than_announced_is_told(hub, cache):
    hub.fault = on("GET .*/model.safetensors", lambda handler: handler.reply(200, b"short"))
    refused("cannot be downloaded: Consistency check failed")
    assert list(cache.rglob("*.incomplete")) == []


def test_a_whole_cache_needs_no_hub(hub, files):
    found = find(NAME)
    hub.fault = hub_server.silence
    assert find(NAME) == found


def test_settings_of_the_library_are_as_before(hub):
    import logging

    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    logger = logging.getLogger("huggingface_hub")
    before = list(logger.handlers), are_progress_bars_disabled()
    find(NAME)
    assert (list(logger.handlers), are_progress_bars_disabled()) == before


@pytest.mark.slow
@pytest.mark.parametrize("model", ["auto", "gpt2"])
def test_a_process_ends_soon_after_it_gave_up(files, tmp_path, model):
    """No thread that still waits for the hub keeps the process."""
    code = (
        "from gpt2kit.torch_engine import find; find.NAMED_SECONDS = 2.0\n"
        f"print(find.find({model!r}).source)"
    )
    with serve(Hub(files, fault=hub_server.silence)) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, env=os.environ | env, timeout=30,
        )  # fmt: skip
    if model == "auto":
        assert (done.returncode, done.stdout) == (0, "bundled\n")
    else:
        assert "gpt2: not a local folder" in done.stderr
