"""Text that grows token by token: decode it, find stop strings, and tell which part is final."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gpt2kit.tokenizer import Tokenizer


class StreamedText:
    """The new text of one row.

    text: what the row says so far. done: whether it has ended, at a stop string or at one of the
    tokens `ends`.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], ends: Collection[int]) -> None:
        self.tokenizer, self.stop, self.ends = tokenizer, stop, ends
        self.ids: list[int] = []
        self.text, self.done = "", False
        self._shown = 0  # characters that `push` has returned

    def push(self, token: int, *, last: bool) -> str:
        """Add a token; return the text that became final with it.

        Text is final when no later token can change it or turn it into a stop string. last: no
        token will follow, so that all text is final.
        """
        if token in self.ends:
            self.done = True
        else:
            self.ids.append(token)
            self.text = self.tokenizer.decode(self.ids)
        stops = [at for stop in self.stop if (at := self.text.find(stop)) >= 0]
        if stops:
            self.text, self.done = self.text[: min(stops)], True
        final = len(self.text)
        if not (self.done or last):
            final -= self._pending()
        piece, self._shown = self.text[self._shown : final], max(self._shown, final)
        return piece

    def _pending(self) -> int:
        """Length of the tail that may still change: half a character, or half a stop string."""
        whole = self.text.rstrip("\ufffd")
        halves = (n for s in self.stop for n in range(1, len(s)) if whole.endswith(s[:n]))
        return len(self.text) - len(whole) + max(halves, default=0)
