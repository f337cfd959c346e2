"""The commands `taps` and `doctor`, and every light command on the bundled model."""

import re

from tests.gpt2kit.cli.support import run, succeeded


def test_taps_are_listed(folder):
    out = succeeded(run("taps"))
    assert re.search(r"blocks\.\{i\}\.pattern +batch head query key", out)


def test_every_light_command_runs_on_the_bundled_model():
    assert succeeded(run("generate", "The king", "-n", "5", "--model", "bundled")).startswith(
        "The king"
    )
    assert "logit lens  bundled" in succeeded(run("lens", "The king", "--model", "bundled"))
    assert "resid_post" in succeeded(run("taps"))
    assert "bundled model" in succeeded(run("doctor"))
