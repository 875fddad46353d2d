"""Processes of a service that die or hang: who is told what, what goes on, and when it ends."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import httpx
import pytest

from app.backends.null import NullBackend
from app.decoding import plan_decoding
from app.images import decode
from app.processes.channel import Channel
from app.settings import Settings
from tests.photos import LIMITS, make_jpeg, null_classes
from tests.raw_http import answers_in, post, receive_all
from tests.running import wait_until
from tests.several_processes import Several, ask_all, one_for_all, other_checkpoint, several_processes, statuses
from tests.test_workers import ANSWERED

# The supervisor forgets an engine's death at once, so that tests may kill it one after another, and has a fault where
# a file says so.
SHARED = """
if "serve" in sys.orig_argv:
    from pathlib import Path
    from app.metrics import SharedFiles
    from app.workers import engine_keeper

    engine_keeper._WINDOW_SECONDS = 0.0
    forget_gauges = SharedFiles.forget_gauges

    def broken(files):
        if (Path(__file__).parent / "fault").exists():
            raise RuntimeError("a fault")
        forget_gauges(files)

    SharedFiles.forget_gauges = broken
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Several]]:
    flags = ("--max-queue", "12", "--max-batch-size", "2")
    with one_for_all(lambda: tmp_path_factory.mktemp("service"), *flags, at_start=SHARED) as service:
        yield service


@pytest.fixture
def several(service: Callable[[], Several]) -> Iterator[Several]:
    """The service of this file, ready; another one where a test before has ended it."""
    several = service()
    several.wait_until_ready()
    yield several
    several.release()


def answers_to(connections: list[socket.socket], seeds: range) -> list[int]:
    """The status on each connection, 0 where it broke; a 200 has its own image's classes."""
    found = []
    for connection, seed in zip(connections, seeds, strict=True):
        answers = answers_in(receive_all(connection))
        connection.close()
        found.append(answers[0].status if answers else 0)
        if found[-1] == 200:
            best = [each["class_id"] for each in answers[0].json()["predictions"][:2]]
            assert tuple(best) == null_classes(make_jpeg(seed))
    return found


def held(pid: int) -> tuple[int, int]:
    """A process's descriptors, and its mappings of shared memory."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    return len(os.listdir(f"/proc/{pid}/fd")), maps.count("resnet-slots")


def test_a_front_end_that_is_killed_costs_its_own_connections(several: Several) -> None:
    """With images of both on the device and waiting, one is killed: its connections break and its images leave the
    engine, the other's are all answered, it is replaced, no place is lost and no counter falls."""
    with ThreadPoolExecutor(16) as pool:
        assert statuses(ask_all(several, pool, range(6))) == [200] * 6
        before = several.metric(ANSWERED)
        for turn in range(2):
            several.hold()
            asking = several.connections_to_each(5)
            for connection, seed in zip(chain(*asking.values()), range(10), strict=True):
                connection.sendall(post(make_jpeg(seed)))
            wait_until(lambda: sum(several.entered) + several.metric('resnet_queue_depth{stage="device"}') == 10)
            seeds = dict(zip(asking, (range(5), range(5, 10)), strict=True))
            killed, other = sorted(asking, reverse=bool(turn))
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda pid=killed: pid not in several.pids("front-end"))
            several.release()
            assert answers_to(asking[killed], seeds[killed]) == [0] * 5
            assert answers_to(asking[other], seeds[other]) == [200] * 5
            # Who comes while its replacement is only starting waits for it, or is answered by the other.
            assert statuses(ask_all(several, pool, range(6))) == [200] * 6
            several.wait_until_ready()
            assert several.readiness() == (200, "ready")
            before += 5 + 6
            wait_until(lambda answered=before: several.metric(ANSWERED) == answered)
            wait_until(lambda: several.metric('resnet_queue_depth{stage="device"}') == 0)
        # Every place is free again: as many images as there are places are taken.
        several.hold()
        asked = ask_all(several, pool, range(14))
        wait_until(lambda: sum(several.entered) + several.metric('resnet_queue_depth{stage="device"}') == 14)
        several.release()
        assert statuses(asked) == [200] * 14


def test_an_engine_that_is_killed_is_started_again_and_the_third_time_ends_the_service(tmp_path: Path) -> None:
    """Its requests get a retryable 503, readiness says so while liveness holds, and it recovers without a leak; the
    third death within five minutes ends the service with status 1."""
    with several_processes(tmp_path) as several, ThreadPoolExecutor(8) as pool:
        leftovers = []
        for death in range(3):
            several.hold()
            asking = ask_all(several, pool, range(8))
            wait_until(lambda: sum(several.entered) + several.metric('resnet_queue_depth{stage="device"}') == 8)
            (engine,) = several.pids("engine")
            os.kill(engine, signal.SIGKILL)
            for each in asking:
                answer = each.result()
                assert isinstance(answer, httpx.Response), answer
                assert (answer.status_code, answer.json()["code"]) == (503, "engine_unavailable")
                assert answer.json()["retryable"] is True
                assert int(answer.headers["Retry-After"]) >= 1
            several.release()
            if death == 2:
                break
            check_that_it_is_alive_and_not_ready(several)
            several.wait_until_ready()
            assert several.pids("engine") != [engine]
            assert statuses(ask_all(several, pool, range(8))) == [200] * 8
            processes = [several.service.process.pid, *several.pids("front-end"), *several.pids("engine")]
            leftovers.append([held(pid) for pid in processes])
        assert leftovers[0] == leftovers[1]
        assert several.service.ended() == 1
        assert "ended 3 times within 5 minutes" in several.service.wait_for("Error:")
        assert several.pids("front-end") == several.pids("engine") == []


def check_that_it_is_alive_and_not_ready(several: Several) -> None:
    with several.client() as client:
        ready, health = client.get("/readyz"), client.get("/healthz")
        assert (ready.status_code, ready.json()["state"]) == (503, "restarting")
        assert (ready.json()["code"], ready.json()["retryable"]) == ("engine_unavailable", True)
        assert (health.status_code, health.json()["state"]) == (200, "restarting")
        refused = client.post("/predict", content=b"x")
        assert (refused.status_code, refused.json()["code"]) == (503, "engine_unavailable")


def test_a_model_call_that_hangs_is_cured_by_a_restart(tmp_path: Path) -> None:
    """Its waiters get 503, the engine's process alone ends, and the service answers again."""
    with several_processes(tmp_path, "--model-timeout-seconds", "0.3") as several, ThreadPoolExecutor(4) as pool:
        (engine,) = several.pids("engine")
        several.hold()
        assert statuses(ask_all(several, pool, range(4))) == [503] * 4
        several.release()
        assert "has not come back" in several.service.wait_for("It is started again")
        several.wait_until_ready()
        assert several.pids("engine") != [engine]
        assert statuses(ask_all(several, pool, range(4))) == [200] * 4
        assert several.service.stop() == 0


def test_a_front_end_whose_decoders_are_all_lost_is_replaced(tmp_path: Path) -> None:
    """Where images hold all of a front-end's decoders for longer than any that ends, it alone ends and is replaced, and
    whichever front-end is asked, the service is alive again."""
    hanging = """
if "front-end" in sys.orig_argv:
    import threading
    from app import classifier
    from app.images import threads

    classifier._STUCK_SECONDS = 0.5
    decode = threads.decode
    threads.decode = lambda data, *how: threading.Event().wait() if data == b"hang" else decode(data, *how)
"""
    memory = str(2 * plan_decoding(Settings(decode_threads=1)).slot_bytes)
    flags = ("--decode-threads", "2", "--decode-memory-bytes", memory, "--decode-timeout-seconds", "0.1")
    with several_processes(tmp_path, *flags, at_start=hanging) as several, several.client() as client:
        before = several.pids("front-end")
        assert client.post("/predict", content=b"hang").json()["code"] == "image_too_complex"
        assert "This process ends, to be replaced" in several.service.wait_for("Every decoder is held")
        wait_until(lambda: len(several.pids("front-end")) == 2 and several.pids("front-end") != before)
        several.wait_until_ready()
        assert len(set(before) & set(several.pids("front-end"))) == 1
        assert {client.get("/healthz").status_code for _ in range(8)} == {200}
        assert several.service.stop() == 0


@pytest.mark.parametrize("role", ["front-end", "engine"])
def test_a_child_for_which_the_system_has_no_room_is_started_later(several: Several, role: str) -> None:
    """Where no process can be started for a moment, the others go on and the one that died is replaced after it."""
    supervisor, killed = several.service.process.pid, several.pids(role)[0]
    before, lines = held(supervisor), len(several.service.lines)
    limits = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, limits[1]))
    os.kill(killed, signal.SIGKILL)
    said = several.service.wait_for("could not be started", since=lines)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, limits)
    assert "Too many open files" in said
    wait_until(lambda: several.pids(role) and killed not in several.pids(role))
    several.wait_until_ready()
    assert isinstance(answer := several.post(1), httpx.Response)
    assert answer.status_code == 200
    assert held(supervisor) == before


def test_metrics_files_that_were_tidied_away_cost_no_restart(several: Several) -> None:
    """Where somebody took the files of gauges out of the folder for temporary files, what dies is replaced as ever."""
    for file in several.folder.glob("resnet-serve-*/gauge*"):
        file.unlink()
    for role in ("front-end", "engine"):
        killed = several.pids(role)[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda role=role, killed=killed: several.pids(role) and killed not in several.pids(role))
        several.wait_until_ready()
    assert several.service.process.poll() is None


def test_a_child_that_is_to_stop_before_it_has_begun_leaves_quietly() -> None:
    """A signal that comes while a process is being started, and so first of all, is no fault."""
    control, theirs = Channel.pair()
    with theirs, contextlib.closing(control):
        control.send("signal", number=int(signal.SIGINT))
        command = [sys.executable, "-m", "app.workers", "front-end", str(theirs.fileno())]
        ended = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_a_fault_of_the_supervisor_ends_the_service_in_good_order(several: Several) -> None:
    """What it cannot cope with is told to the front-ends, which answer what they have accepted; the status is 1."""
    several.hold()
    asking = several.connections_to_each(6)
    for connection, seed in zip(chain(*asking.values()), range(12), strict=True):
        connection.sendall(post(make_jpeg(seed)))
    wait_until(lambda: sum(several.entered) + several.metric('resnet_queue_depth{stage="device"}') == 12)
    (several.folder / "fault").touch()
    killed, other = asking
    os.kill(killed, signal.SIGKILL)
    several.service.wait_for("failed unexpectedly")
    several.release()
    assert answers_to(asking[killed], range(6)) == [0] * 6
    assert answers_to(asking[other], range(6, 12)) == [200] * 6
    assert several.service.ended() == 1
    assert several.service.wait_for("failed unexpectedly (RuntimeError)")
    assert several.pids("front-end") == several.pids("engine") == []


def test_a_new_checkpoint_is_served_whole_once_the_engine_has_it(several: Several) -> None:
    """Where the weights were exchanged, an engine that is started again brings its version, labels and input along."""
    with several.client() as client:
        image = make_jpeg(1)
        assert client.post("/predict", content=image).json()["model"]["version"] == "00000000"
        (several.folder / "version").write_text("12345678" * 8)
        (engine,) = several.pids("engine")
        os.kill(engine, signal.SIGKILL)
        wait_until(lambda: several.pids("engine") not in ([], [engine]))
        several.wait_until_ready()
        checkpoint = other_checkpoint("12345678" * 8)
        pixels = decode(image, checkpoint.preprocessing, LIMITS)
        expected = NullBackend(checkpoint).classes_of(pixels)
        for _ in range(6):
            answer = client.post("/predict", content=image).json()
            assert answer["model"]["version"] == "12345678"
            assert tuple(each["class_id"] for each in answer["predictions"][:2]) == expected
            assert answer["predictions"][0]["label"] == f"kind {expected[0]}"


def test_no_process_outlives_its_supervisor(several: Several) -> None:
    """Where the supervisor is killed, front-ends and engine end by themselves."""
    children = [*several.pids("front-end"), *several.pids("engine")]
    assert len(children) == 3
    several.service.process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and alive(pid) for pid in children))


def alive(pid: int) -> bool:
    """Not gone, and no zombie that nobody buries."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
