"""Paths of requests without a proxy's prefix, and of routes without parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter


def own_path(scope: Mapping[str, Any]) -> str:
    """The path without the prefix that a proxy stripped. Some servers add the prefix to the path, some do not."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    return path.removeprefix(prefix) if prefix and path.startswith(prefix + "/") else path


def fixed_paths(routers: Iterable[APIRouter]) -> frozenset[str]:
    """The paths of the routes that have no parameters."""
    paths = {getattr(route, "path", "") for router in routers for route in router.routes}
    return frozenset(path for path in paths if path and "{" not in path)
