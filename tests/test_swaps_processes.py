"""Models that come and go where each has an engine in a process of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.photos import make_jpeg
from tests.running import service_process, wait_until
from tests.several_processes import REPOSITORY
from tests.versions import series_of_models, version_of, versions_in

IMAGES = [make_jpeg(seed) for seed in range(8)]
# The supervisor obeys who writes to a socket beside it: there is no other door for models yet.
PROGRAM = """
import asyncio, json
from pathlib import Path
from app.types import ModelIdentity
from app.workers import supervisor as room

def identity(version):
    return ModelIdentity("null", f"{version:08x}")

class Obeying(room.Supervisor):
    async def run(self):
        async def obey(reader, writer):
            order = json.loads(await reader.readline())
            Path("version").write_text(str(order["version"]))
            try:
                if order["do"] == "unload":
                    await self.engines.unload_model(identity(order["version"]))
                else:
                    replaced = None if order["replaces"] is None else identity(order["replaces"])
                    await self.engines.load_model(self._settings, replaced)
                answer = "done"
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            writer.write(answer.encode())
            writer.close()
        await asyncio.start_unix_server(obey, "orders")
        return await super().run()

import app.workers.together
app.workers.together.Supervisor = Obeying
from app.cli.main import main
main()
"""
# Python runs a file of this name at its start: an engine serves the version that is written down.
AT_START = """
import sys

if "engine" in sys.orig_argv:
    from pathlib import Path
    from app.backends import null
    from tests.versions import checkpoint_of

    version = int((Path(__file__).parent / "version").read_text())
    if version == 666:
        raise SystemExit(3)
    null.NULL_CHECKPOINT = checkpoint_of(version)
"""


class Service:
    """Two front-ends and an engine for each model."""

    def __init__(self, folder: Path, address: str, pid: int, lines: list[str]) -> None:
        self.folder = folder
        self.address = address
        self.pid = pid
        self.lines = lines

    def order(self, do: str, version: int, replaces: int | None = None) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(self.folder / "orders"))
            connection.sendall(json.dumps({"do": do, "version": version, "replaces": replaces}).encode() + b"\n")
            return connection.recv(4096).decode()

    def pids(self, role: str) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if parent == self.pid and role.encode() in command:
                found.append(int(entry.name))
        return sorted(found)

    def page(self) -> str:
        return httpx.get(f"{self.address}/metrics", timeout=30).text

    def post(self, image: bytes) -> httpx.Response:
        """On a new connection: any front-end may answer."""
        return httpx.post(f"{self.address}/predict", content=image, timeout=30)

    def held(self) -> list[tuple[int, int, int]]:
        """Of the supervisor and each front-end: threads, open files, mapped segments and boards."""
        return [counted(pid) for pid in (self.pid, *self.pids("front-end"))]

    def segments(self) -> set[str]:
        """The inodes of the shared memory that any of the service's processes has mapped or open."""
        found = set()
        for pid in (self.pid, *self.pids("front-end"), *self.pids("engine")):
            maps = Path(f"/proc/{pid}/maps").read_text()
            found |= set(re.findall(r"(\d+) +/memfd:resnet-(?:slots|board|facts)", maps))
        return found


def counted(pid: int) -> tuple[int, int, int]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return (
        len(os.listdir(f"/proc/{pid}/task")),
        len(os.listdir(f"/proc/{pid}/fd")),
        len(re.findall(r"/memfd:resnet-", maps)),
    )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "sitecustomize.py").write_text(AT_START)
    (folder / "version").write_text("1")
    environment = {"PYTHONPATH": f"{folder}:{REPOSITORY}", "TMPDIR": str(folder)}
    flags = ("--backend", "null", "--http-workers", "2", "--max-batch-size", "4", "--decode-threads", "2")
    with service_process(*flags, folder=folder, environment=environment, program=PROGRAM) as running:
        found = re.search(r"http://[0-9.]+:\d+", running.wait_for("Ready:"))
        assert found
        yield Service(folder, found[0], running.process.pid, running.lines)


def now_served(service: Service) -> int:
    """The version that both front-ends answer with."""
    found: set[int] = set()
    wait_until(lambda: len(service.pids("engine")) == 1 and len(versions_in(service.page())) == 1)
    for image in IMAGES:
        found.add(version_of(service.post(image).json(), image))
    (version,) = found
    return version


def test_swaps_under_load(service: Service) -> None:
    """Each answer is one version's own and none is lost; engines that were replaced are gone with their shared memory
    and their metrics, and the other processes hold what they held."""
    first = now_served(service)
    assert service.order("swap", first + 1, first) == "done"
    wait_until(lambda: now_served(service) == first + 1)
    before, series, engines = service.held(), series_of_models(service.page()), service.pids("engine")
    served: dict[int, int] = {}
    stop = threading.Event()

    def one_client(number: int) -> None:
        turn = number
        while not stop.is_set():
            image = IMAGES[turn % len(IMAGES)]
            turn += 1
            answer = service.post(image)
            assert answer.status_code == 200, answer.text
            version = version_of(answer.json(), image)
            served[version] = served.get(version, 0) + 1

    with ThreadPoolExecutor(3) as clients:
        asking = [clients.submit(one_client, number) for number in range(3)]
        try:
            for version in range(first + 2, first + 8):
                assert service.order("swap", version, version - 1) == "done"
                wait_until(lambda version=version: served.get(version, 0) > 2)  # type: ignore[misc]
        finally:
            stop.set()
        for each in asking:
            each.result()
    last = first + 7
    assert now_served(service) == last
    assert set(served) >= set(range(first + 2, last + 1))
    assert not set(engines) & set(service.pids("engine"))
    assert versions_in(service.page()) == {last}
    wait_until(lambda: series_of_models(service.page()) == series)
    # Six swaps would show as six of something; a connection that was closing at the first look counts one less.
    wait_until(lambda: not any(np.any(np.greater(now, then)) for now, then in zip(service.held(), before, strict=True)))
    # The front-ends' own board; a board, and a segment for each of them, of the one engine.
    wait_until(lambda: len(service.segments()) == 4)
    files = {path.name for path in service.folder.glob("resnet-serve-*/*")}
    assert len({name.split(".")[1] for name in files if name.count(".") == 2}) == 1, files


def test_a_model_that_cannot_be_loaded_changes_nothing(service: Service) -> None:
    """A swap whose engine does not start is refused, and what served serves on; so is one that is there already."""
    version = now_served(service)
    engines = service.pids("engine")
    assert service.order("swap", 666, version).startswith("DeviceLost")
    assert service.order("load", version).startswith("StartError: A model null of version")
    assert service.order("swap", version + 1, 12345).startswith("ModelNotFound")
    assert now_served(service) == version
    assert service.pids("engine") == engines


def test_two_engines_at_once(service: Service) -> None:
    """A second model has an engine of its own beside the first; when it is unloaded its process ends."""
    version = now_served(service)
    assert service.order("load", version + 1) == "done"
    assert len(service.pids("engine")) == 2
    wait_until(lambda: versions_in(service.page()) == {version, version + 1})
    answers: list[Any] = [service.post(image) for image in IMAGES]
    assert {version_of(answer.json(), image) for answer, image in zip(answers, IMAGES, strict=True)} == {version}
    assert service.order("unload", version + 1) == "done"
    assert len(service.pids("engine")) == 1
    wait_until(lambda: versions_in(service.page()) == {version})


def test_an_engine_that_dies_after_a_swap_is_started_again(service: Service) -> None:
    """The engine of a model that replaced another one is kept as the first one's was, under its own version."""
    version = now_served(service)
    assert service.order("swap", version + 1, version) == "done"
    assert now_served(service) == version + 1
    (engine,) = service.pids("engine")
    os.kill(engine, 9)
    wait_until(lambda: service.pids("engine") not in ([], [engine]))
    wait_until(lambda: httpx.get(f"{service.address}/readyz").status_code == 200)
    wait_until(lambda: all(service.post(image).status_code == 200 for image in IMAGES))
    assert now_served(service) == version + 1
    assert service.order("swap", version + 2, version + 1) == "done"
    assert now_served(service) == version + 2
    # Weights that changed on the disk are a swap too.
    (service.folder / "version").write_text(str(version + 3))
    os.kill(service.pids("engine")[0], 9)
    wait_until(lambda: versions_in(service.page()) == {version + 3})
    assert now_served(service) == version + 3
