"""The programs in `benchmarks/`: what they take, and what they say of a run that did not go well."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import ceiling, clients, compare, load


def test_compare_takes_peers_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    """`make compare` gives no argument and gets the usual peers; another name is refused, with those there are."""
    assert compare.parse([]).peers == ["plain-fastapi", "litserve", "mosec"]
    assert compare.parse(["bentoml", "--rounds", "1"]).peers == ["bentoml"]
    with pytest.raises(SystemExit):
        compare.parse(["mosec", "nginx"])
    assert "there is no peer nginx; choose from plain-fastapi" in capsys.readouterr().err


def test_a_server_that_answers_nothing_leaves_a_dash(tmp_path: Path) -> None:
    """Resets and silence are counted; the table has its row, and the others' rounds are not lost."""

    async def main() -> clients.Tally:
        def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            held.append(writer)
            if len(held) % 2:
                writer.transport.abort()

        held: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(reset, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        load = clients.Clients(f"http://127.0.0.1:{port}", [clients.post("/", b"", "image/jpeg")], give_up_seconds=0.1)
        tally = await load.closed_loop(2, 0.3)
        for each in held:
            each.transport.abort()
        server.close()
        await server.wait_closed()
        return tally

    lost = asyncio.run(main())
    assert lost.statuses[clients.NO_ANSWER] == sum(lost.statuses.values()) >= 2
    assert lost.latencies == []
    good = clients.Tally(1.0, [0.012] * 3, Counter({200: 3}))
    own, other = (compare.Contestant(name, [], bytes, [], tmp_path) for name in ("own", "other"))
    own.rounds, own.start_seconds = [good, good], [1.0, 1.0]
    other.rounds = [lost, lost]
    *_, first, second = compare.table([own, other]).splitlines()
    assert first == "| own | 3.0 | 1.00x | 12 | 12 | 1.0 | 0 |"
    assert second == f"| other | – | – | – | – | – | {{'no answer': {2 * lost.statuses[clients.NO_ANSWER]}}} |"


def test_a_recovery_that_did_not_happen_is_not_claimed() -> None:
    """Answers that are late to the end of what was watched: not within so many seconds."""
    step = load.Step(10.0, 10.0)
    for number in range(100):
        step.add(number / 10, 0.5, 200)
    assert step.settled_after(0.1) is None
    assert step.settled_after(1.0) == 0
    for number in range(100, 120):
        step.add(number / 10, 0.05, 200)
    assert step.settled_after(0.1) == 10
    told = load.table(load.Report("", "", [load.Case("tight", "one process", 100.0, 50.0, 8, [], None, 10.0)]))
    assert "as before the load again not within 10 s after" in told


_FAMILY = """
import subprocess, sys
busy = "import time\\nwhile time.process_time() < 0.4: pass\\nprint(flush=True)\\ninput()"
subprocess.run([sys.executable, "-c", busy])
"""


def test_the_cpu_of_all_the_services_processes_is_counted() -> None:
    """With several front-ends the supervisor does little: its children, which live, are what costs."""
    with subprocess.Popen(
        [sys.executable, "-c", _FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert ceiling.cpu_seconds(process.pid) >= 0.39
        process.communicate("\n")


def test_what_each_step_of_an_answer_costs_is_measured() -> None:
    """Every server of `benchmarks.steps` starts, answers rightly and ends; the table has a row for each."""
    command = [sys.executable, "-m", "benchmarks.steps", "--rounds", "1", "--seconds", "0.3"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == ["alone", "decode", "engine", "classify", "service"]
    assert all(int(images_a_second) > 0 and float(ms) > 0.1 for _, images_a_second, _, ms in rows)
