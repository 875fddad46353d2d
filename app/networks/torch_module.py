"""A description realised as a torch module."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .description import INPUT, Description, Step, uses
from .torch_layers import create_module, padded


class _Call(NamedTuple):
    step: Step
    module: nn.Module | None
    is_in_place: bool
    done: tuple[str, ...]
    """Results that no later step needs."""


class DescribedNetwork(nn.Module):
    """`(N, 3, H, W)` → `(N, classes)`. Its state dict has the checkpoint's names."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        steps = description.computed()
        counts = uses(steps)
        last_use = {name: number for number, step in enumerate(steps) for name in step.inputs}
        self._calls: list[_Call] = []
        is_flat = False
        for number, step in enumerate(steps):
            # A result that is needed once may be written over, as torchvision does; the caller's images may not.
            is_in_place = counts[step.inputs[0]] == 1 and step.inputs[0] != INPUT
            module = None
            if step.kind not in ("sum", "flatten"):
                module = create_module(step, is_flat=is_flat, is_in_place=is_in_place)
                self._place(step.name, module)
            is_flat = is_flat or step.kind == "flatten"
            done = tuple(name for name in set(step.inputs) if last_use[name] == number)
            self._calls.append(_Call(step, module, is_in_place, done))

    def _place(self, name: str, module: nn.Module) -> None:
        """Register `module` under a name with dots."""
        *path, leaf = name.split(".")
        parent: nn.Module = self
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(leaf, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        results = {INPUT: x}
        for step, module, is_in_place, done in self._calls:
            first = results[step.inputs[0]]
            if module is not None:
                x = module(padded(first, step))
            elif step.kind == "flatten":
                x = torch.flatten(first, 1)
            else:
                second = results[step.inputs[1]]
                x = first.add_(second) if is_in_place else first + second
            for name in done:
                del results[name]
            results[step.name] = x
        return x
