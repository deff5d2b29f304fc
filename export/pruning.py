"""Which layers of a model a pruned draft keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export.architectures import read_config
from edgespec.export.calibration_data import Layers
from edgespec.export.source import Source
from edgespec.progress import Progress, silent


def choose_layers(
    source: Source, count: int, windows: Sequence[Sequence[int]], progress: Progress = silent
) -> list[int]:
    """The ``count`` layers to keep: without the run of consecutive layers that changes its input least.

    It is measured on the tokens of ``windows`` as in Gromov et al. 2024 ("The Unreasonable
    Ineffectiveness of the Deeper Layers"): the angle between the inputs and the outputs of the run. Needs the extra ``[torch]``. Raises ``UserError`` where there are not so many layers.
    """
    config = read_config(source.metadata)
    if not 0 < count < config.layers:
        raise UserError(
            f"cannot keep {count} layers of {source.path.name}, which has {config.layers}; "
            f"give a number from 1 to {config.layers - 1}"
        )
    layers = Layers(source)
    states = [layers.embed(windows)]
    for layer in range(config.layers):
        progress("measuring the layers", layer, config.layers)
        states.append(layers.run(layer, states[-1]))
    progress("measuring the layers", config.layers, config.layers)
    dropped = config.layers - count
    distances = [
        angular_distance(np.concatenate(before), np.concatenate(after))
        for before, after in zip(states, states[dropped:], strict=False)
    ]
    first = int(np.argmin(distances))
    return [layer for layer in range(config.layers) if not first <= layer < first + dropped]


def angular_distance(before: FloatArray, after: FloatArray) -> float:
    """The mean angle between the rows of two arrays, as a fraction of π."""
    products = (before * after).sum(axis=-1)
    lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    cosines = np.clip(products / np.maximum(lengths, np.finfo(np.float32).tiny), -1, 1)
    return float(np.arccos(cosines).mean() / np.pi)
