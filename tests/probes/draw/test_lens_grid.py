"""The grid of a lens fits the terminal, and its cells hold the numbers of the lens."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from gpt2kit.errors import InputError
from gpt2kit.result import as_html
from probes import LogitLens, logit_lens
from probes.lens.lens_result import QUANTITIES
from tests.conftest import CONFIG

PROMPT = "the cat, the <b>hat</b>\n"

STRANGE = [
    " the",
    "日本語の",
    "🙂🙃",
    "\n\n",
    "\t",
    "a\x1b[31mred",
    "\x00",
    "e\u0301",
    "\u202e",
    "[b]",
    "",
]


@pytest.fixture(scope="module")
def lens(torch_runner) -> LogitLens:
    return logit_lens(torch_runner, PROMPT, top_k=3)


@pytest.fixture(scope="module")
def strange(torch_runner) -> LogitLens:
    """A lens whose tokens are hard to print."""
    lens = logit_lens(torch_runner, "x" * len(STRANGE), top_k=2, targets=["a", "b"])
    n = len(STRANGE)
    cells = tuple((STRANGE[p], STRANGE[(p + 1) % n]) for p in range(n))
    return replace(lens, prompt_tokens=tuple(STRANGE), top_tokens=(cells,) * len(lens.rows))


def untargeted(lens: LogitLens, n: int = 0) -> LogitLens:
    """The same lens with only its first n targets."""
    return replace(
        lens,
        targets=lens.targets[:n],
        target_logprobs=lens.target_logprobs[..., :n],
        target_ranks=lens.target_ranks[..., :n],
    )


def drawn(lens: LogitLens, width: int, **options) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(lens.grid(**options))
    return capture.get()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("by", QUANTITIES)
@pytest.mark.parametrize("targets", [0, 1, 2])
@pytest.mark.parametrize("lines", [1, 2])
def test_no_line_is_wider_than_the_terminal(strange, width, by, targets, lines):
    text = drawn(untargeted(strange, targets), width, by=by, lines=lines)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert "\x1b" not in text
    assert not set(text) & set("\x00\t\r")
    assert text.count("\n") == len(text.splitlines())  # no sign that breaks lines elsewhere
    grid = text[text.index("\n\n") + 2 :]  # without the header
    pages = grid.count("\npos ")
    labels = re.findall(r"^(final|embed|[01]) ", grid, re.MULTILINE)
    assert labels == ["final", "1", "0", "embed"] * pages
    of_a_target = targets > 0 and by not in ("entropy", "kl")
    more = re.findall(r"^ {6}", grid, re.MULTILINE)  # the further tokens of a row of cells
    assert len(more) == (0 if of_a_target else 4 * pages * (lines - 1))
    if width >= 80:
        assert (grid.count("日本語の") <= 2) == of_a_target  # below, or in the cells as well


def test_columns_line_up(strange):
    lines = drawn(untargeted(strange), 200).split("\n")
    rule = next(line for line in lines if line.startswith("─"))
    grid = lines[lines.index(rule) - 4 : lines.index(rule) + 4]
    assert {cell_len(line) for line in grid} == {cell_len(rule)}


def test_the_token_that_follows_is_marked(torch_runner, lens):
    following = np.append(lens.next_ids[:-1], 0)
    certain = replace(lens, top_ids=np.broadcast_to(following[:, None], lens.top_ids.shape))
    text = drawn(certain, 200)
    assert text.count("✓") - 1 == 4 * (len(lens.positions) - 1)  # one is the legend
    assert drawn(replace(lens, top_ids=lens.top_ids * 0 - 5), 200).count("✓") == 1
    assert "✓" not in drawn(logit_lens(torch_runner, PROMPT, targets=["a"]), 200)


def test_the_header_says_what_a_reader_must_know(torch_runner, lens):
    text = drawn(lens, 400)
    assert f"logit lens  random  float32  {len(lens.prompt_ids)} tokens, no BOS added" in text
    assert "colour: probability" in text
    assert all(str(i) in text.split("\nid ")[1].split("\n")[0] for i in lens.prompt_ids)
    with_bos = logit_lens(torch_runner, PROMPT, prepend_bos=True, targets=["a", "b"])
    assert " tokens, BOS added\n" in drawn(with_bos, 200)
    assert "logit of 'a' minus logit of 'b'" in drawn(with_bos, 200)
    assert "probability of 'a'" in drawn(untargeted(with_bos, 1), 200)
    assert "nats" in drawn(lens, 200, by="entropy")


def test_the_cells_of_a_target_hold_its_numbers(torch_runner):
    lens = logit_lens(torch_runner, PROMPT, targets=["a"], positions=[2])
    final = next(line for line in drawn(lens, 80, by="rank").split("\n") if "final" in line)
    assert final.split()[1] == str(lens.target_ranks[-1, 0, 0])
    final = next(line for line in drawn(lens, 80, by="logit").split("\n") if "final" in line)
    assert float(final.split()[1]) == pytest.approx(lens.values("logit")[-1, 0], abs=0.006)


def test_a_long_prompt_shows_its_end_and_says_so(torch_runner):
    lens = logit_lens(torch_runner, "x" * CONFIG.n_positions)
    text = drawn(lens, 30)
    assert re.search(r"the first \d+ columns are not\s+shown; choose with --pos", text)
    assert text.rstrip().split("\n")[-2].split()[-1] == str(CONFIG.n_positions - 1)
    assert "not shown" not in drawn(lens, 200)


@pytest.mark.parametrize("by", QUANTITIES)
@pytest.mark.parametrize("targets", [0, 1, 2])
def test_html_is_coloured_and_escaped(strange, by, targets):
    html = as_html(untargeted(strange, targets).grid(by=by))
    assert html.startswith("<pre")
    assert html.endswith("</pre>")
    assert len(set(re.findall(r"background-color: (#\w{6})", html))) > 3
    assert html.count("<span") == html.count("</span>")


def test_html_shows_every_column_and_runs_nothing(torch_runner, lens):
    html = lens._repr_html_()
    assert "<b>" not in html
    assert html.count("final") == 1
    evil = tuple("<script>" for _ in lens.prompt_tokens)
    assert "<script>" not in replace(lens, prompt_tokens=evil)._repr_html_()


def test_lines_and_targets_beyond_what_the_lens_has_are_refused(torch_runner, lens):
    for lines in (0, 4):
        with pytest.raises(InputError, match=f"lines = {lines} must be from 1 to 3"):
            drawn(lens, 80, lines=lines)
    with pytest.raises(InputError, match="one target and one foil, not 3"):
        logit_lens(torch_runner, PROMPT, targets=["a", "b", "c"]).grid()
