"""The heads with the largest or smallest scores."""

from __future__ import annotations

import numpy as np

from gpt2kit.readout import Floats

LeadingHead = tuple[int, int, float]  # layer, head, score


def leading(scores: Floats, n: int = 5, *, largest: bool = True) -> list[LeadingHead]:
    """The n heads with the largest, or the smallest, of (layer, head) scores; NaN is left out."""
    order = np.argsort(-scores if largest else scores, axis=None, kind="stable")  # NaN comes last
    places = [divmod(int(i), scores.shape[1]) for i in order[:n]]
    return [(*at, float(scores[at])) for at in places if not np.isnan(scores[at])]
