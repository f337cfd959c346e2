"""Text from files and models, made safe to print: control characters become visible signs.

A terminal acts on control characters: they move the cursor, change the title of the window, or
reverse the order of what follows.
"""

from __future__ import annotations

_SIGNS = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡"}
_SIGNS |= dict.fromkeys(range(0x80, 0xA0), "␦")  # C1; 0x9b begins a sequence as ESC [ does
_SIGNS |= dict.fromkeys([0x2028, 0x2029], "␦")  # line breaks of Unicode
_SIGNS |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "␦")  # bidi overrides
_SIGNS |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")  # lone surrogates, which are not UTF-8
_TEXT_SIGNS = {code: sign for code, sign in _SIGNS.items() if chr(code) not in "\n\t"}
_TOKEN_SIGNS = _SIGNS | str.maketrans({"\n": "⏎", "\t": "⇥"})


def printable(token: str) -> str:
    """A token on one line: line breaks and control characters become visible signs."""
    return token.translate(_TOKEN_SIGNS)


def printable_text(text: str) -> str:
    """A text whose line breaks and tabs stay; other control characters become visible signs."""
    return text.translate(_TEXT_SIGNS)
