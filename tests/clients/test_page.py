"""What docs/clients.md shows runs, in each client's own environment."""

import re
from pathlib import Path

import pytest

from exporters import export_onnx
from gpt2kit import generate
from tests.clients import running

pytestmark = [pytest.mark.clients, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
TEXT = "Once upon a time"
# Heading -> the client, and whether its code gives a text or the next token.
CLIENTS = {
    "onnxruntime": ("onnxruntime", False),
    "onnxruntime-genai": ("genai", True),
    "optimum-onnx": ("optimum", True),
    "transformers.js": ("transformers_js", True),
    "onnxruntime-web": ("browser", False),
    "OpenVINO": ("openvino", False),
}


def blocks() -> dict[str, str]:
    """Heading -> the code under it."""
    pattern = r"\n## ([^\n]+)\n(?:(?!\n## ).)*?```(?:py|js)\n(.*?)```"
    return dict(re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.DOTALL))


@pytest.fixture(scope="module")
def folder(bundled, tmp_path_factory) -> Path:
    """A folder with the layout of the page."""
    root = tmp_path_factory.mktemp("page")
    (root / "out" / "onnx").mkdir(parents=True)
    export_onnx(bundled, root / "out" / "onnx" / "model.onnx")
    return root


def test_every_client_is_on_the_page():
    assert blocks().keys() == CLIENTS.keys()


@pytest.mark.parametrize("heading", CLIENTS)
def test_the_page_shows_code_that_runs(folder, bundled, heading):
    client, gives_text = CLIENTS[heading]
    code, request = blocks()[heading], {"folder": str(folder / "out")}
    program = running.path(client)
    if client == "browser":
        code, request = program.read_text(encoding="utf-8"), request | {"script": code}
    said = running.run(program, code, request, None if client == "browser" else folder)
    ids = bundled.tokenizer.encode(TEXT)
    logits = bundled.run([ids], last_only=True).logits
    whole = TEXT + generate(bundled, TEXT, max_new_tokens=15, greedy=True)
    assert said.strip() == (whole if gives_text else str(logits[0, -1].argmax()))
