"""Large packages for tests, imported where a test first uses them, and not while tests are collected."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any


class Lazy(ModuleType):
    """Stands for the module of this name, which is imported at the first use of a public name in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest and its plugins look for their own marks on all that a test module holds
            raise AttributeError(name)
        return getattr(_imported(self.__name__), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_imported(self.__name__), name, value)


@cache
def _imported(name: str) -> ModuleType:
    module = importlib.import_module(name)
    if name == "torch":
        # torch's threads wait for each other by spinning: beside other work, two are slower than one.
        module.set_num_threads(1)
    elif name != "scipy.stats":
        _imported("torch")
    return module


torch = Lazy("torch")
nn = Lazy("torch.nn")
functional = Lazy("torch.nn.functional")
torchvision = Lazy("torchvision")
timm = Lazy("timm")
stats = Lazy("scipy.stats")
