"""The commands `taps` and `doctor`, and every light command on the bundled model."""

import re

import numpy as np
import pytest

from gpt2kit import Edit
from gpt2kit.cli.tools import EDITS, GRAMMAR
from tests.gpt2kit.cli.support import run, succeeded


def test_taps_are_listed(folder):
    out = succeeded(run("taps"))
    assert re.search(r"blocks\.\{i\}\.pattern +batch head query key", out)


def test_every_light_command_runs_on_the_bundled_model():
    assert succeeded(run("generate", "One day", "-n", "5", "--model", "bundled")).startswith(
        "One day"
    )
    assert "logit lens  bundled" in succeeded(run("lens", "One day", "--model", "bundled"))
    assert "resid_post" in succeeded(run("taps"))
    assert "bundled model" in succeeded(run("doctor"))


def test_the_grammar_of_edits_is_shown_with_examples_that_parse():
    out = succeeded(run("taps"))
    for name in ("direction.npy", "clean.npy"):
        np.save(name, np.ones(3))
    for edit, _ in EDITS:
        assert edit in out
        assert Edit.parse(edit).tap == edit.split("[")[0].split()[0]
    assert all(re.search(rf"^ {word} ", out, re.MULTILINE) for word, *_ in GRAMMAR)


@pytest.mark.parametrize("value", GRAMMAR[-1][2].split(", "))
def test_values_of_the_grammar_parse(value):
    for name in ("direction.npy", "mean.npy"):
        np.save(name, np.ones(3))
    Edit.parse(f"blocks.0.z = {value}")
