"""A network that also answers with its feature maps, found by tracing: the input of its last global average pool."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ...errors import first_line

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

logger = logging.getLogger(__name__)

# Rounding in half formats; a pool of a part of the map is far off.
_MOST_ROUNDING = 0.02
_POOL_FUNCTIONS = ("adaptive_avg_pool2d", "avg_pool2d", "mean")
_WEIGHTED = ("Linear", "Conv2d")


def with_features(network: torch.nn.Module) -> torch.nn.Module | None:
    """`network` with three outputs: logits, the pool's output, the feature maps. None where there is no such pool.

    It shares the modules of `network`. A pool counts if all of the logits are computed through it, with a weighted
    layer behind it. Whether it covers the whole map is for the caller to see from the values (`is_global`).
    """
    from torch import fx

    class Tracer(fx.Tracer):
        """Traces the network's own forward, and of its parts only those that are opened: few need to be traceable."""

        def __init__(self) -> None:
            super().__init__()
            self.opened: set[str] = set()

        def is_leaf_module(self, module: torch.nn.Module, name: str) -> bool:
            return name not in self.opened

    tracer = Tracer()
    while True:
        try:
            graph = tracer.trace(network)
        except Exception as error:  # whatever the network's code makes of a tracer's values
            logger.info("The network gives no features, for it cannot be traced: %s", first_line(error))
            return None
        backbone = _backbone(graph)
        for node in backbone:
            if _is_pool(network, node):
                return _extended(network, graph, node) if _has_weights_behind(network, graph, node) else None
            if node.op == "call_module" and (name := str(node.target)) not in tracer.opened and _is_open(network, name):
                tracer.opened.add(name)
                break
        else:
            return None


def is_global(maps: torch.Tensor, pooled: torch.Tensor) -> bool:
    """Whether `pooled` are the means of `maps` (N, C, h, w)."""
    if maps.ndim != 4 or pooled.numel() != maps.shape[0] * maps.shape[1]:
        return False
    features = pooled.float().flatten(1)
    return bool((maps.float().mean((2, 3)) - features).abs().max() <= _MOST_ROUNDING * features.abs().max())


def _backbone(graph: Any) -> list[Node]:
    """The nodes that all of the output is computed through, last first."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    return [node for node in reversed(graph.nodes) if node.op.startswith("call") and _is_only_way(output, node)]


def _is_only_way(output: Node, node: Node) -> bool:
    seen, waiting = {output}, [output]
    while waiting:
        for each in waiting.pop().all_input_nodes:
            if each.op == "placeholder":
                return False
            if each is not node and each not in seen:
                seen.add(each)
                waiting.append(each)
    return True


def _is_pool(network: torch.nn.Module, node: Node) -> bool:
    from torch import nn

    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), nn.AdaptiveAvgPool2d | nn.AvgPool2d)
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name in _POOL_FUNCTIONS


def _is_open(network: torch.nn.Module, name: str) -> bool:
    """Whether a module is made of others, and not one of PyTorch's own layers."""
    from torch import nn

    module = network.get_submodule(name)
    is_layer = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return not is_layer and any(True for _ in module.children())


def _has_weights_behind(network: torch.nn.Module, graph: Any, pool: Node) -> bool:
    nodes = list(graph.nodes)
    for node in nodes[nodes.index(pool) + 1 :]:
        if node.op == "call_module":
            parts = network.get_submodule(str(node.target)).modules()
            if any(type(part).__name__.endswith(_WEIGHTED) for part in parts):
                return True
        elif getattr(node.target, "__name__", "") in ("linear", "conv2d", "matmul", "addmm"):
            return True
    return False


def _extended(network: torch.nn.Module, graph: Any, pool: Node) -> torch.nn.Module:
    from torch import fx

    (output,) = (node for node in graph.nodes if node.op == "output")
    maps = pool.args[0]
    with graph.inserting_before(pool):
        # Copies: what comes behind may change them in place.
        kept_maps = graph.call_method("clone", (maps,))
    with graph.inserting_after(pool):
        kept_pooled = graph.call_method("clone", (pool,))
    output.args = ((output.args[0], kept_pooled, kept_maps),)
    graph.lint()
    return fx.GraphModule(network, graph)
