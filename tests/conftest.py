"""A real server on a loopback socket for each module that asks for one; a blocking call on its event loop fails."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import settings

from app.settings import ENV_PREFIX, Settings
from tests.running import CACHE_DIR, RunningServer, running_server

REPOSITORY = Path(__file__).parent.parent
# How long an example takes depends on the machine and what else it does.
settings.register_profile("any pace", deadline=None)
settings.load_profile("any pace")


IMPORTED_BY_COLLECTION = pytest.StashKey[set[str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[IMPORTED_BY_COLLECTION] = set(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Settings come from the tests alone; all servers share one cache, so that each network is exported once.

    A cache that is there already can be named by TEST_CACHE_DIR.
    """
    saved = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(ENV_PREFIX)}
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each of its workers a folder below the run's.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ[CACHE_DIR] = os.environ.get("TEST_CACHE_DIR") or str(run / "cache")
    yield
    del os.environ[CACHE_DIR]
    os.environ.update(saved)


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_is_not_collected() -> Iterator[None]:
    """Python's collector leaves out what lives when a module begins: some tests have it run, each time through all."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def example_jpeg() -> bytes:
    """The drawn clock, 640×480."""
    return (REPOSITORY / "app" / "data" / "example.jpg").read_bytes()


@pytest.fixture(scope="module")
def null_server() -> Iterator[RunningServer]:
    """A ready server with the null backend: its answers name the image, and it needs no weights."""
    with running_server(Settings(backend="null", port=0, log_level="warning", max_batch_size=16)) as server:
        yield server


@pytest.fixture(scope="module")
def client(null_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=null_server.address, timeout=30) as client:
        yield client
