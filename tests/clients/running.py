"""Run a program of a foreign client in that client's environment."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.clients import environments

PYTHON = ("onnxruntime", "genai", "optimum", "openvino")
HERE = Path(__file__).parent / "programs"


def path(client: str) -> Path:
    """The client's own program."""
    return HERE / (f"{client}_client.py" if client in PYTHON else f"{client}.mjs")


def run(program: Path, code: str, request: dict[str, Any], folder: Path | None = None) -> str:
    """Run code in the environment of `program`; what it prints.

    request: its only argument, as JSON. A browser is added to it.
    folder: where it runs; a client of JavaScript finds its packages anyway.
    """
    client = program.stem.removesuffix("_client")
    if client in PYTHON:
        command = [*environments.python(client), "-c", code]
    else:
        command = [*environments.node(), str(environments.NODE / program.name)]
        Path(command[-1]).write_text(code, encoding="utf-8")
        if client == "browser":
            request = request | {"browser": environments.tool("chromium", "chromium-browser")}
    result = subprocess.run(
        [*command, json.dumps(request)],
        cwd=folder or environments.NODE.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    return result.stdout
