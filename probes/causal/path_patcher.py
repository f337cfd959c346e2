"""Patches paths: edits that make a receiver compute from a sender's clean write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2kit.edits import Edit
from gpt2kit.readout import Floats
from gpt2kit.taps import TapDict
from probes.causal.path_ends import Receiver, Sender
from probes.core.prompt_pair import PromptPair


class PathPatcher:
    """Patches paths into copies of the corrupt run, one sender a row."""

    def __init__(
        self, pair: PromptPair, groups: Sequence[tuple[Receiver, ...]], freeze_ln: bool
    ) -> None:
        self.pair, self.base, self.freeze_ln = pair, pair.corrupt, freeze_ln
        self.receivers = [receiver for group in groups for receiver in group]
        self._last_read: tuple[Any, TapDict[Floats]] | None = None

    def measure_paths(self, senders: tuple[Sender, ...], group: Sequence[Receiver]) -> Floats:
        """(senders,) the metric with the paths from each sender to these receivers patched."""
        edits = [edit for receiver in group for edit in self._output_edits(senders, receiver)]
        run = self.base.run_copies(min(r.layer for r in group), len(senders), edits)
        return self.pair.measure(run)

    def _output_edits(self, senders: tuple[Sender, ...], receiver: Receiver) -> list[Edit]:
        """Edits that set the receiver's output to what it computes from each sender's clean
        write."""
        if not receiver.tap:  # the logits: nothing reads them, so their input may be edited itself
            return self._input_edits(senders, receiver)
        value = self._outputs(senders, receiver)[receiver.tap]
        if receiver.head is None:
            return [Edit.replace(receiver.tap, value)]
        return [Edit.replace(receiver.tap, value[:, :, receiver.head], head=receiver.head)]

    def _outputs(self, senders: tuple[Sender, ...], receiver: Receiver) -> TapDict[Floats]:
        """What every receiver with the same entry computes from each sender's clean write.

        The last answer is kept, as the next receiver often has the same entry.
        """
        if self._last_read is None or self._last_read[0] != (senders, receiver.entry):
            edits = self._input_edits(senders, receiver)
            taps = [r.tap for r in self.receivers if r.entry == receiver.entry]
            run = self.base.run_copies(receiver.layer, len(senders), edits, taps)
            self._last_read = (senders, receiver.entry), run.taps
        return self._last_read[1]

    def _input_edits(self, senders: tuple[Sender, ...], receiver: Receiver) -> list[Edit]:
        """Edits that add to the receiver's input the difference of each sender's two writes."""
        change = np.zeros((len(senders), *self.base.taps[receiver.entry].shape[1:]))
        for row, sender in zip(change, senders, strict=True):
            if sender.order < receiver.order:
                row += sender.write(self.pair.clean.taps) - sender.write(self.base.taps)
        edits = [Edit.steer(receiver.entry, change)]
        if self.freeze_ln:
            edits.append(Edit.replace(receiver.scale, self.base.taps[receiver.scale]))
        return edits
