"""Patterns and tables of heads fit the terminal and show the right numbers."""

import re

import pytest
from rich.cells import cell_len

from gpt2kit import TorchRunner
from probes.heads.attention_statistics import attention_statistics
from probes.heads.circuits import ov_top_tokens
from probes.heads.patterns import attention_patterns
from probes.heads.scores import head_scores
from tests import planted
from tests.planted import planted_runner
from tests.probes.heads.support import PROMPT, drawn


@pytest.fixture(scope="module")
def known() -> TorchRunner:
    return planted_runner()


@pytest.mark.parametrize("width", [22, 40, 80, 200])
@pytest.mark.parametrize("prompt", ["a", PROMPT, "日本語 🙂[b]\x1b", "x" * 40])
def test_a_grid_fits_the_terminal(torch_runner, width, prompt):
    result = attention_patterns(torch_runner, prompt).show(1, 2)
    text = drawn(result, width)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert "\x1b" not in text
    assert "\n" not in repr(result)
    assert result._repr_html_().count("<span") > len(result.tokens) / 2


def test_a_grid_shows_percentages_where_they_fit(known):
    result = attention_patterns(known, "w1 w2 w3 w1 w2").show(*planted.INDUCTION)
    lines = drawn(result, 80).split("\n")
    assert lines[0] == "attention of head 1.2  planted  float32  5 tokens"
    assert "percent of the row's attention" in lines[1]
    assert lines[5].split() == ["2", "w3", "·", "50", "50"]
    assert lines[6][14:] == "  ·100  ·  ·"
    assert lines[8].split() == ["0", "1", "2", "3", "4"]
    assert lines[6].index("100") + 2 == lines[8].index("1")


def test_a_narrow_grid_shows_shades_and_a_very_narrow_one_takes_tokens_together(known):
    block = " ".join(f"w{i}" for i in range(20))
    result = attention_patterns(known, f"{block} {block}").show(*planted.PREVIOUS)
    lines = re.findall(r"^ +\d+ w.*", drawn(result, 60), re.MULTILINE)
    assert len(lines) == 40
    assert all(lines[i].rstrip().index("█") == 14 + i - 1 for i in range(1, 40))
    text = drawn(result, 34)
    assert "2 tokens a cell" in text.replace("\n", " ")
    starts = re.findall(r"^ +\d+ w.*", text, re.MULTILINE)
    assert len(starts) == 20
    # Of a pair, the first token looks into the pair before and the second into its own.
    assert starts[7].rstrip()[-2:] == "▒▒"


def test_tables_name_the_heads_that_lead(known):
    text = str(head_scores(known, length=32))
    first = next(line for line in text.split("\n") if "1.00" in line)
    assert first.split()[::2] == ["0.1", "0.3", "1.2", "1.0", "0.0"]
    assert text.startswith(
        "what heads look at  planted  float32  4 x 32 random tokens, said twice\n"
    )
    looks = str(attention_patterns(known, "w1 w2 w3 w1 w2"))
    assert re.search(r"^1\.2 +4 w2 +2 w3 +1\.000$", looks, re.MULTILINE)
    assert " 0 w" not in looks  # nothing of the first token
    statistics = str(attention_statistics(known, "w1 w2 w3 w1 w2"))
    assert statistics.index("0.0  0.00") < statistics.index("0.2  1.20")
    assert "'w5'" in str(ov_top_tokens(known, *planted.INDUCTION, "w5"))
