"""A stand-in for the hub: the part of its HTTP interface that a download uses, and its faults."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "a" * 40, "v1": "0123456789" * 4}  # revision -> commit
PAGE = b"<!doctype html><title>Please log in</title>"
API = re.compile(r"/api/models/(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:/revision/(?P<rev>[^/]+))?$")
FILE = re.compile(r"/(?P<name>[\w.-]+(?:/[\w.-]+)?)/resolve/(?P<rev>[^/]+)/(?P<file>.+)$")


@dataclass
class Hub:
    """What the server holds, and how it misbehaves."""

    files: dict[str, bytes]  # of the one model, in every revision
    name: str = "someone/tiny"
    moved: dict[str, str] = field(default_factory=dict)  # old name -> name
    gated: bool = False
    fault: Callable[["Handler"], bool] = lambda _: False  # True if it has answered
    large: tuple[str, ...] = ("model.safetensors",)  # served by another host, as LFS files are
    requests: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    cdn: str = "localhost"  # another name of the same host, as seen from 127.0.0.1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    """Answers as huggingface.co does."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.fault(self):
            return
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/cdn/"):
            self.send_part(self.hub.files[path.removeprefix("/cdn/")])
        elif found := API.match(path) or FILE.match(path):
            self.answer(**found.groupdict())
        else:
            self.reply(404)

    def answer(self, name: str, rev: str | None, file: str | None = None) -> None:
        if new := self.hub.moved.get(name):
            self.reply(307, Location=self.path.replace(name, new))  # relative, as the hub's are
        elif name != self.hub.name:
            self.reply(401, **{"X-Error-Code": "RepoNotFound"})
        elif (commit := commit_of(rev or "main")) is None:
            self.reply(404, **{"X-Error-Code": "RevisionNotFound"})
        elif file is None:
            self.send_listing(commit)
        elif self.hub.gated:
            self.reply(403, **{"X-Error-Code": "GatedRepo"})
        elif file not in self.hub.files:
            self.reply(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            self.send_file(file, commit)

    def send_listing(self, commit: str) -> None:
        sizes = {file: len(content) for file, content in self.hub.files.items()}
        siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
        listing = {"id": self.hub.name, "sha": commit, "siblings": siblings}
        self.reply(200, json.dumps(listing).encode(), **{"Content-Type": "application/json"})

    def send_file(self, file: str, commit: str) -> None:
        content = self.hub.files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if file in self.hub.large:
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"'}
            headers |= {"X-Linked-Size": str(len(content))}
            headers |= {"Location": f"http://{self.hub.cdn}:{self.hub.port}/cdn/{file}"}
            self.reply(302, **headers)
        else:
            self.send_part(content, **headers)

    def send_part(self, content: bytes, **headers: str) -> None:
        """A file, or its end if a Range asks for that."""
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            whole = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.reply(206, content[start:], **headers, **{"Content-Range": whole})
        else:
            self.reply(200, content, **headers)

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def hold(self) -> None:
        """Say nothing more until the test is over."""
        self.hub.closing.wait(60)
        self.close_connection = True

    def send_half(self, content: bytes) -> None:
        """Promise a file, send half of it."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True


def commit_of(revision: str) -> str | None:
    """The commit that a branch, a tag, a commit or its beginning names."""
    if revision in COMMITS:
        return COMMITS[revision]
    short = len(revision) >= 7
    return next((c for c in COMMITS.values() if short and c.startswith(revision)), None)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the stand-in in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


# Faults


def silence(handler: Handler) -> bool:
    handler.hold()
    return True


def trickle(handler: Handler) -> bool:
    """Answer so slowly that no single read takes long, and the whole takes for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.hub.closing.wait(0.05):
        handler.wfile.write(b"x")
    handler.close_connection = True
    return True


def slow(handler: Handler) -> bool:
    """Answer right, but late."""
    time.sleep(0.6 if "/api/" in handler.path else 0)
    return False


def portal(handler: Handler) -> bool:
    """A captive portal that answers every address with its page."""
    handler.reply(200, PAGE, **{"Content-Type": "text/html"})
    return True


def redirecting_portal(handler: Handler) -> bool:
    """A captive portal that leads every address to its page, on another host."""
    if "/login" in handler.path:
        return portal(handler)
    handler.reply(302, Location=f"http://localhost:{handler.hub.port}/login")
    return True


def answers(status: int, **headers: str) -> Callable[[Handler], bool]:
    def fault(handler: Handler) -> bool:
        handler.reply(status, b"{}", **headers)
        return True

    return fault


def on(pattern: str, fault: Callable[[Handler], object], times: int = 1000):
    """The fault, for the first requests whose "METHOD /path" matches."""
    left = [times]

    def maybe(handler: Handler) -> bool:
        if not re.search(pattern, f"{handler.command} {handler.path}") or not left[0]:
            return False
        left[0] -= 1
        fault(handler)
        return True

    return maybe


def cut(handler: Handler) -> None:
    """Close the connection in the middle of a file."""
    handler.send_half(handler.hub.files[handler.path.rpartition("/")[2]])


def stall(handler: Handler) -> None:
    """Stop in the middle of a file, with the connection open."""
    cut(handler)
    handler.hold()
