"""Batch normalisation folded into the convolution before it: of a ResNet's kernels, and their traffic, a third."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ...errors import first_line

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def fold_batch_norms(network: torch.nn.Module) -> torch.nn.Module:
    """A copy of `network`, in inference, whose convolutions do the work of the normalisations that follow them.

    The network itself where PyTorch's tracer cannot follow it; it is then as fast as it was.
    """
    from torch.fx.experimental.optimization import fuse

    try:
        folded: torch.nn.Module = fuse(network.eval())
    except Exception as error:  # whatever the network's code makes of a tracer's values
        logger.info("The network is run as it is, for it cannot be traced: %s", first_line(error))
        return network
    return folded
