"""Paths: of requests, and of the routes that they may lead to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter


def own_path(scope: Mapping[str, Any]) -> str:
    """The path without the prefix that a proxy stripped."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def fixed_paths(routers: Iterable[APIRouter]) -> frozenset[str]:
    """Of the routes that have no part which clients choose."""
    paths = {getattr(route, "path", "") for router in routers for route in router.routes}
    return frozenset(path for path in paths if path and "{" not in path)
