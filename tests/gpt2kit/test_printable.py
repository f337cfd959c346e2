"""Control characters become visible, and nothing else changes."""

import errno
import io
import sys
import unicodedata

import pytest

from gpt2kit.notes import note
from gpt2kit.printable import printable, printable_text

ALL = "".join(map(chr, range(sys.maxunicode + 1)))
BIDI = {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
CONTROLS = {c for c in ALL if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")} | BIDI


def test_tokens_stay_on_one_line():
    assert printable("a b\n\t\r\x00\x1b\x7fé") == "a b⏎⇥␍␀␛␡é"
    assert printable("\x85\x9b\u2028\u202e\ud800") == "␦␦␦␦�"
    assert len(printable(ALL).splitlines()) == 1


def test_a_text_keeps_its_lines_and_tabs():
    assert printable_text("a\n\tb\r\n\x1b[31m") == "a\n\tb␍\n␛[31m"


def test_controls_are_replaced_and_nothing_else():
    for kept, shown in (("", printable(ALL)), ("\n\t", printable_text(ALL))):
        assert set(shown) & CONTROLS == set(kept)
        changed = {a for a, b in zip(ALL, shown, strict=True) if a != b}
        assert changed == CONTROLS - set(kept)


def test_a_note_is_one_printable_line(capsys):
    note("a\x1b]0;title\x07\nb")
    assert capsys.readouterr().err == "gpt2kit: a␛]0;title␇⏎b\n"


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("stream", [None, FullDisk()])
def test_a_note_where_no_error_can_be_shown_is_left_out(stream, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", stream)
    note("nobody reads this")
    assert capsys.readouterr().out == ""
