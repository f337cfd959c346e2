"""Edits from JavaScript, which sees required inputs alone."""

import json

import numpy as np
import pytest

from exporters import export_onnx
from gpt2kit import Edit
from tests.clients import running
from tests.conftest import close

pytestmark = [pytest.mark.clients, pytest.mark.slow]

TAP, TEXT = "blocks.1.resid_post", "Once upon a time"


def fed_from_javascript(bundled, path, required: bool) -> dict[str, dict]:
    """Runtime -> its last logits with keep = 0.5 and add = 0.25, or its error."""
    export_onnx(bundled, path, edits=TAP, edits_required=required)
    program = running.path("edits_js")
    request = {"path": str(path), "tap": TAP, "ids": bundled.tokenizer.encode(TEXT)}
    output = running.run(program, program.read_text(encoding="utf-8"), request)
    return {said.pop("runtime"): said for said in map(json.loads, output.splitlines())}


def last_logits(bundled, *edits) -> np.ndarray:
    return bundled.run([bundled.tokenizer.encode(TEXT)], edits=edits, last_only=True).logits[0, -1]


def test_required_inputs_of_edits_can_be_fed(bundled, tmp_path):
    said = fed_from_javascript(bundled, tmp_path / "model.onnx", required=True)
    expected = last_logits(bundled, Edit(TAP, keep=0.5, add=0.25))
    close(said["node"]["logits"], expected)
    close(said["web"]["logits"], expected)


def test_optional_inputs_are_ignored_or_refused(bundled, tmp_path):
    """What the page says of them; a new release that sees them makes this test fail."""
    said = fed_from_javascript(bundled, tmp_path / "model.onnx", required=False)
    close(said["node"]["logits"], last_logits(bundled))
    assert said["web"]["error"].endswith(f"invalid input '{TAP}.keep'")
