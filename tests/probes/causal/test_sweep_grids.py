"""How results of patching and ablation look: grids, repr, JSON and HTML."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from gpt2kit.errors import InputError
from probes.causal.ablation import ablate
from probes.causal.patching import activation_patching
from probes.core.metrics import Metric
from tests.conftest import close
from tests.probes.causal.support import (
    CLEAN,
    CORRUPT,
    DIFF,
)


@pytest.fixture(scope="module")
def results(torch_runner):
    texts = "the [b] cat\n, the cat", "the [b] hat\n, the hat"
    metric = Metric.logit_diff("a", "[")
    return [
        activation_patching(torch_runner, *texts, metric=metric),
        activation_patching(torch_runner, *texts, metric=metric, over="z"),
        activation_patching(torch_runner, *texts, metric=metric, over="z", positions=slice(None)),
        ablate(torch_runner, texts, metric=metric),
        ablate(torch_runner, texts[0], metric=metric, over="mlp_out"),
    ]


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_grid_fits_its_terminal(results, width):
    for result in results:
        console = Console(width=width, color_system=None)
        with console.capture() as capture:
            console.print(result.render())
        lines = capture.get().splitlines()
        assert max(map(cell_len, lines)) <= width
        blocks = lines.count("layer")
        pages = -(-len(result.clean_tokens) * 6 // (width - 8)) if lines[-1][:3] == "pos" else 1
        assert blocks == pages
        assert sum(line.startswith("2 ") for line in lines) == blocks


def test_cells_say_what_they_are(results):
    stream, heads = results[:2]
    rows = [line for line in str(stream).splitlines() if line[:2] in ("0 ", "1 ", "2 ")]
    shown = [[float(x) for x in row.split()[1:]] for row in rows[:3]]
    columns = len(shown[0])
    close(shown, stream.normalised[::-1][:, :columns], 0.00501)
    assert "·" in str(stream)  # a leading space can be seen
    assert "⏎" in str(stream)
    assert "head       0     1     2" in str(heads)
    assert "resid_post" in str(stream)
    assert "0 as in the corrupt run, 1 as in the clean one" in str(stream)
    several, one = (str(result) for result in results[3:])
    assert "mean of all" in several
    assert "18 runs in 6 batches of up to 3" in several  # of both prompts together
    assert "random  float32  2 prompts" in several
    assert "random  float32  17 tokens" in one
    assert not {"mean", "prompt"} & set(re.findall(r"\w+", one))
    assert one.splitlines()[-1].split() == ["mlp_out"]  # and not a head
    assert several.splitlines()[-1].split() == ["head", "0", "1", "2"]


def test_the_strongest_place_is_the_largest_in_size_whatever_its_sign(results):
    stream, ablation = results[0], results[4]
    values = np.zeros(stream.values.shape)
    values[1, 2], values[2, 4] = -0.9, 0.4
    assert "; strongest at layer 1, position 2: -0.90;" in repr(replace(stream, normalised=values))
    effect = np.array([0.4, -0.9, 0.0])
    assert "; strongest at layer 1: -0.9;" in repr(replace(ablation, effect=effect))


def test_results_are_data_and_html(results):
    for result in results:
        data = json.loads(result.to_json())
        close(data["values"], result.values, 0)
        assert data["saving"]
        assert result._repr_html_().startswith("<pre")
        assert "\n" not in repr(result)
    assert "3 layers x 3 heads x 17 positions" in repr(results[2])
    assert "2 prompts" in repr(results[3])


def test_a_model_without_a_tokenizer_is_patched_by_ids(double, monkeypatch):
    monkeypatch.setattr(double, "tokenizer", None)
    got = activation_patching(double, CLEAN, CORRUPT, metric=DIFF)
    assert got.clean_tokens == tuple(str(i) for i in CLEAN)
    with pytest.raises(InputError, match="has no tokenizer to look 'a' up; give its id"):
        activation_patching(double, CLEAN, CORRUPT, metric=Metric.prob("a"))


def test_importing_the_probes_does_not_import_torch():
    imports = "from probes.causal import ablation, gradients, patching, paths"
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
