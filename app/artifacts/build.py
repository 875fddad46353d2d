"""A checkpoint → its ONNX graph, whose answers are compared with torch's. Imports torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..backends.trial import trial_images
from ..checkpoints import Checkpoint
from ..networks import build_network
from .checking import as_text, check_graph
from .exporting import described, trace, with_preprocessing

if TYPE_CHECKING:
    import torch


def build(checkpoint: Checkpoint, threads: int) -> Checkpoint:
    """`checkpoint` as a graph that lies in memory, its answers checked; one that is a graph already as it is.

    Raises `ExportFailed` where the network cannot be exported, or where the graph answers otherwise than torch does.
    """
    if checkpoint.graph is not None:
        return checkpoint
    network = _built(checkpoint, threads)
    expected = _answers(network, checkpoint)
    graph = described(checkpoint, trace(network, checkpoint), as_text(expected))
    check_graph(graph, expected, checkpoint.preprocessing.crop, checkpoint.architecture, threads)
    return replace(checkpoint, weights={}, graph=graph)


def _built(checkpoint: Checkpoint, threads: int) -> torch.nn.Module:
    import torch

    # Its own way would be a thread for each CPU of the machine, also where a container may use fewer.
    torch.set_num_threads(threads)
    return build_network(checkpoint.architecture, checkpoint.weights, checkpoint.switches)


def _answers(network: torch.nn.Module, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """The logits of the trial images: `(N, classes)`."""
    import torch

    images = torch.from_numpy(trial_images(checkpoint.preprocessing.crop))
    with torch.inference_mode():
        return np.asarray(with_preprocessing(network, checkpoint.preprocessing)(images).numpy())
