"""What the probes' results look like is made of a few parts, each held to its promise."""

import numpy as np
import pytest
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.text import Text

from gpt2kit.result import as_html as html
from probes.draw.colours import bar, diverging, sequential, style_on
from probes.draw.grid import Grid
from probes.draw.tables import table
from probes.draw.words import fit_width, format_number, visible
from probes.lens.logit_lens import logit_lens


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


@pytest.mark.parametrize(
    ("text", "width", "right", "want"),
    [
        ("ab", 4, False, "ab  "),
        ("ab", 4, True, "  ab"),
        ("abcde", 4, False, "abc…"),
        ("日本語", 4, False, "日 …"),
        ("日本", 5, True, " 日本"),
    ],
)
def test_a_text_takes_exactly_its_width(text, width, right, want):
    assert fit_width(text, width, right=right) == want
    assert cell_len(fit_width(text, width, right=right)) == width


def test_what_cannot_be_seen_gets_a_sign():
    assert [visible(token) for token in (" a", "\n", "\x1b[31m")] == ["·a", "⏎", "␛[31m"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.004, "0.00"), (-0.004, "0.00"), (0.5, "+0.50"), (-9.99, "-9.99"), (12.34, "+12.3"),
     (float("nan"), "·")],
)  # fmt: skip
def test_numbers_say_their_sign(value, text):
    assert format_number(value) == text


def test_colours_go_from_end_to_end_and_ink_can_be_read_on_them():
    assert diverging(-5) == diverging(-1) != diverging(1) == diverging(5)
    red, green, blue = diverging(0).triplet
    assert max(red, green, blue) - min(red, green, blue) < 25  # grey
    shades = [sum(sequential(x).triplet) for x in np.linspace(0, 1, 20)]
    assert shades == sorted(shades)
    for ramp in (sequential, diverging):
        for x in np.linspace(-1, 1, 21):
            style = style_on(ramp(float(x)))
            apart = np.subtract(style.color.triplet, style.bgcolor.triplet)
            assert abs(apart @ [0.30, 0.59, 0.11]) > 60
    assert style_on(Color.from_rgb(255, 255, 255)).color == style_on(sequential(1.0)).color


def test_a_bar_says_what_it_measures_and_spans_its_ramp():
    for ramp, start in ((diverging, -1.0), (sequential, 0.0)):
        found = bar(ramp, "low", "high", "metres")
        assert found.plain.startswith("low ─")
        assert found.plain.endswith("─ high  metres")
        ends = [found.spans[i].style.bgcolor for i in (0, -1)]
        assert ends == [ramp(start), ramp(1.0)]


def test_tables_have_no_boxes_and_print_names_as_they_are():
    rows = table("[b]", "by", "[i]", "by", numbers=["by"])
    rows.add_row("a", "1.00", "b", "2.00")
    lines = drawn(rows, 80)
    assert lines[0].split() == ["[b]", "by", "[i]", "by"]
    assert lines[1].split() == ["a", "1.00", "b", "2.00"]
    assert lines[0].index("by") + 2 == lines[1].index("1.00") + 4


def test_results_can_be_compared_and_kept_in_sets(torch_runner):
    """Equal by content, NaN included: the last token has no next one."""
    one, two = (logit_lens(torch_runner, "the ") for _ in range(2))
    assert np.isnan(one.next_logprobs).any()
    assert one == one
    assert one == two
    assert one != logit_lens(torch_runner, "the", top_k=2)
    assert one != "the "
    assert len({one, two, one}) == 1
