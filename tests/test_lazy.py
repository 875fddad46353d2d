"""Tests are collected without the packages that take seconds to import."""

from __future__ import annotations

import pytest

from tests.conftest import IMPORTED_BY_COLLECTION


def test_collection_imports_no_torch(request: pytest.FixtureRequest) -> None:
    """Collecting this run's tests has imported neither torch nor what rests on it."""
    imported = request.config.stash[IMPORTED_BY_COLLECTION]
    assert not imported & {"torch", "torchvision", "timm", "scipy.stats"}
