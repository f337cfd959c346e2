"""Grids show every column once, fit the width, and never shorten numbers."""

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from gpt2kit.result import as_html as html
from probes.draw.colours import sequential
from probes.draw.grid import Grid


def drawn(what, width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(what)
    return capture.get().splitlines()


def grid(columns: int = 30, most: float = 1.0) -> Grid:
    values = np.random.default_rng(0).normal(size=(3, columns))
    labels = {"token": [f" word{i}" for i in range(columns)], "pos": list(map(str, range(columns)))}
    return Grid.of_numbers([Text("what it is")], values, labels, most=most)


@pytest.mark.parametrize("width", [20, 40, 80, 200, 400])
@pytest.mark.parametrize("columns", [1, 7, 30])
def test_a_grid_shows_every_column_once_and_fits(width, columns):
    lines = drawn(grid(columns), width)
    assert max(map(cell_len, lines)) <= width
    positions = [line.split()[1:] for line in lines if line.startswith("pos")]
    assert [x for line in positions for x in line] == list(map(str, range(columns)))
    assert [line[0] for line in lines if line[:2] in ("0 ", "1 ", "2 ")] == list("210") * len(
        positions
    )


def test_labels_stand_under_the_ends_of_their_numbers():
    lines = drawn(grid(5), 80)
    ends = {
        tuple(i for i in range(1, len(line) + 1) if line[i - 1] != " " and line[i : i + 1] in " ")
        for line in (lines[3], lines[-1], lines[-2])
    }
    assert len({tuple(end[1:]) for end in ends}) == 1


def test_numbers_are_never_cut_and_words_are():
    big = Grid.of_numbers([], np.array([[1.5e-7, -123456.0, np.nan]]), {}, most=1.0)
    assert drawn(big, 80)[2].split() == ["0", "0.00", "-1.23e+05", "·"]
    words = [("x", [("a very long word indeed", sequential(0))])]
    assert drawn(Grid([], words, {}, words=True), 80)[1] == "x a very long…"


def test_nothing_of_a_header_is_cut():
    about = "a model of a very long name, in some folder, of 12 tokens, no BOS added"
    lines = drawn(Grid([Text(about)], grid(3).lines, grid(3).columns), 40)
    assert " ".join(line.strip() for line in lines[:2]) == about
    assert lines[2] == ""


def test_only_the_last_blocks_are_shown_and_it_says_so():
    whole = grid(30)
    part = Grid(whole.header, whole.lines, whole.columns, corner="layer", last=1)
    text = " ".join(" ".join(drawn(part, 40)).split())
    assert "columns are not shown; choose with --pos" in text
    assert text.endswith(" 28 29")
    assert "not shown" not in " ".join(drawn(part, 400))


def test_html_has_room_for_all_columns():
    assert grid(40).width > 120
    assert html(grid(40)).count("layer") == 1


def test_cells_are_not_dim_though_their_labels_are():
    console = Console(width=80, color_system="truecolor", force_terminal=True)
    lines = console.render_lines(grid(3), pad=False)
    row = next(line for line in lines if line and line[0].text.startswith("2"))
    label, *cells = (segment for segment in row if segment.text.strip())
    assert label.style.dim
    assert len(cells) == 3
    assert not any(cell.style.dim for cell in cells)
