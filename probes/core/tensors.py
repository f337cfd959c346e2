"""Functions of a numpy array or a torch tensor; torch itself is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit.logits import log_softmax
from gpt2kit.readout import Floats

if TYPE_CHECKING:
    from torch import Tensor


def log_probabilities(logits: Any) -> Any:
    """Logits (…, vocab) -> log-probabilities, natural; a tensor stays one and has gradients."""
    return log_softmax(logits) if isinstance(logits, np.ndarray) else logits.log_softmax(-1)


def exp(x: Any) -> Any:
    """e to the x, element by element."""
    return np.exp(x) if isinstance(x, np.ndarray) else x.exp()


def as_float64(x: Tensor) -> Floats:
    """A tensor as a numpy array in float64, detached and on the CPU."""
    array: Floats = x.detach().cpu().double().numpy()
    return array
