"""Patch place after place of one tap and measure each: the loop of patching and ablation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2kit.edits import Edit
from gpt2kit.progress import Progress
from gpt2kit.readout import Floats
from gpt2kit.taps import axes_of
from probes.core.base_run import BaseRun
from probes.core.batching import row_batches
from probes.core.measure import Measure
from probes.core.places import Place, layer_of, slices_of


def patch_places(
    base: BaseRun,
    tap: str,
    value: Floats,
    places: Sequence[Place],
    measure: Measure,
    progress: Progress,
) -> Floats:
    """(places,) the metric of a copy of `base` for each place, which gets its part of `value`.

    value: the tap's, without the batch axis.
    """
    layer, found = layer_of(tap, base.n_layer), []
    for part in row_batches(places, len(base.ids)):
        run = base.run_copies(layer, len(part), [_replace_row_by_row(tap, value, part)])
        found.append(measure(run))
        progress.add(len(part))
    return np.concatenate(found)


def _replace_row_by_row(tap: str, value: Floats, places: Sequence[Place]) -> Edit:
    """One edit of a batch that puts `value` at the place of each row."""
    width = value.shape[-1] if axes_of(tap)[-1] in places[0] else 1
    hit = np.zeros((len(places), *value.shape[:-1], width), bool)
    for row, place in zip(hit, places, strict=True):
        row[slices_of(place, tap)] = True
    return Edit(tap, ~hit, np.where(hit, value, 0))
