"""Short texts: fixed widths, visible tokens, numbers with a sign."""

import pytest
from rich.cells import cell_len

from probes.draw.words import fit_width, format_number, visible


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


def test_invisible_characters_get_a_sign():
    assert [visible(token) for token in (" a", "\n", "\x1b[31m")] == ["·a", "⏎", "␛[31m"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.004, "0.00"), (-0.004, "0.00"), (0.5, "+0.50"), (-9.99, "-9.99"), (12.34, "+12.3"),
     (float("nan"), "·")],
)  # fmt: skip
def test_numbers_say_their_sign(value, text):
    assert format_number(value) == text
