"""What the tests of neurons share."""

import numpy as np

LAYER, NEURON = 1, 37


def weights(runner) -> dict[str, np.ndarray]:
    return {name: x.double().numpy() for name, x in runner.model.state_dict().items()}
