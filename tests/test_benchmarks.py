"""The programs in `benchmarks/`: their options, and their reports of a run that did not go well."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import typer.main

from app.bench.answers import read_status
from app.bench.clients import Clients, prepare
from app.bench.loops import closed_loop
from app.bench.processes import cpu_seconds, proportional_kilobytes
from app.bench.steps import Step, Tally
from app.bench.target import Target
from app.cli import bench as bench_command
from app.cli.main import app as command_line
from benchmarks import compare, load, turns, workers

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def documented(prefix: str) -> Iterator[str]:
    """The commands that README and docs name, without their line breaks."""
    for path in DOCUMENTS:
        for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", path.read_text(encoding="utf-8")):
            command = " ".join(span.split())
            if command.startswith(prefix) and "[" not in command:
                yield command


EXPERIMENTS = sorted({*documented("python -m benchmarks.")})
BENCHES = sorted({*documented("resnet-serve bench")})


class Parsed(Exception):
    """The command line was accepted."""


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_documented_experiments_exist(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command line that the documents name is one that its program accepts."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> None:
        parse(parser, arguments)
        raise Parsed

    _, _, module, *arguments = shlex.split(command)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        importlib.import_module(module).main()


@pytest.mark.parametrize("command", BENCHES)
def test_documented_bench_commands_exist(command: str) -> None:
    """Each `resnet-serve bench` of the documents is accepted, the flags of `serve` behind -- too."""
    group = typer.main.get_command(command_line)
    bench = group.commands["bench"]  # type: ignore[attr-defined]
    arguments = shlex.split(command)[2:]
    if "--url" in arguments:
        arguments = arguments[: arguments.index("--url") + 2]
    context = bench.make_context("bench", arguments)
    bench_command._settings(context.params["serve_flags"] or [])


def test_every_experiment_is_documented() -> None:
    """A program in `benchmarks/` belongs to a figure: README or docs name its command, or the Makefile runs it."""
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text("utf-8")}
    named = {command.split()[2].partition(".")[2] for command in EXPERIMENTS}
    assert programs == named


def test_compare_takes_peers_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    """`make compare` gives no argument and gets the usual peers; another name is refused, with those there are."""
    assert compare.parse([]).peers == ["plain-fastapi", "litserve", "mosec"]
    assert compare.parse(["bentoml", "--rounds", "1"]).peers == ["bentoml"]
    with pytest.raises(SystemExit):
        compare.parse(["mosec", "nginx"])
    assert "there is no peer nginx; choose from plain-fastapi" in capsys.readouterr().err


def step_of(tally: Tally, seconds: float = 1.0) -> Step:
    return tally.step("closed", requests=tally.answered, seconds=seconds)


def a_turn(step: Step) -> turns.Turn:
    return turns.Turn(step, start_seconds=1.0, cpu_seconds=0.03, answers=3, memory_kilobytes=90_000)


def good_step() -> Step:
    tally = Tally(1e9)
    for _ in range(3):
        tally.add(read_status(b"", 200, b"", None), 0.012)
    return step_of(tally)


def test_a_server_that_answers_nothing_leaves_a_dash() -> None:
    """Resets and silence are counted; the table has its row, and the others' rounds are not lost."""

    async def main() -> Step:
        def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            held.append(writer)
            if len(held) % 2:
                writer.transport.abort()

        held: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(reset, "127.0.0.1", 0)
        target = Target("http", "127.0.0.1", server.sockets[0].getsockname()[1])
        clients = Clients(target, [prepare(target, b"")], read=read_status)
        step = await closed_loop(clients.ask, clients=2, seconds=0.3, target_ms=100, give_up_seconds=0.1)
        for each in held:
            each.transport.abort()
        server.close()
        await server.wait_closed()
        return step

    lost = asyncio.run(main())
    errors = Counter(lost.connection_errors) + Counter({"no answer": lost.unanswered})
    assert errors.total() == lost.requests >= 2
    assert lost.good == 0
    own, other = (turns.Server(name, [], [], {}) for name in ("own", "other"))
    own.turns = [a_turn(good_step())] * 2
    other.turns = [a_turn(lost)]
    other.failed()
    *_, first, second = compare.table_of([own, other]).splitlines()
    assert first == "| own | 3.0 | 1.00x | 12 | 12 | 1.0 | 0 |"
    assert second == f"| other | – | – | – | – | – | {dict(errors | Counter({'no start': 1}))} |"


def test_answers_other_than_200_are_reported() -> None:
    """The table of `benchmarks.workers` is followed by the refusals and lost answers of each side."""
    server = turns.Server("2", [], [], {})
    refused = Tally(1e9)
    refused.add(read_status(b"", 503, b"", None), 0.01)
    server.turns = [a_turn(good_step()), a_turn(step_of(refused))]
    *_, row, others = workers.report([server]).splitlines()
    assert row == "| 2 | 2 | 1.00 | 12.0 | 12.0 | 10.00 | 90 |"
    assert others == "others with 2: 1 × 503, 0 wrong."


def test_a_chunked_answer_ends_with_its_last_chunk() -> None:
    """Other servers may send bodies in chunks, split anywhere; the connection is kept for the next request."""

    async def main() -> Step:
        served = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served.append(writer)
            with suppress(asyncio.IncompleteReadError):
                while await reader.readuntil(b"\r\n\r\n"):
                    for piece in pieces:
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0)
            writer.close()
            await writer.wait_closed()
            closed.set()

        closed = asyncio.Event()
        pieces = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r", b"\n{0}\r\n0\r\n", b"\r\n")
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        target = Target("http", "127.0.0.1", server.sockets[0].getsockname()[1])
        clients = Clients(target, [prepare(target, b"")], read=read_status)
        step = await closed_loop(clients.ask, clients=1, requests=5, target_ms=1000)
        assert len(served) == 1
        clients.close()
        await closed.wait()
        server.close()
        return step

    assert asyncio.run(main()).statuses == {"200": 5}


def test_a_recovery_that_did_not_happen_is_not_claimed() -> None:
    """Answers that are late to the end of the watched time: the report says not within so many seconds."""
    step = load.Step(10.0, 10.0)
    for number in range(100):
        step.answers.append((number / 10, 0.5, 200))
    assert step.settled_after(0.1) is None
    assert step.settled_after(1.0) == 0
    for number in range(100, 120):
        step.answers.append((number / 10, 0.05, 200))
    assert step.settled_after(0.1) == 10
    case = load.Case("tight", "one process", 100.0, 50.0, 8, [], None, 10.0)
    assert "as before the load again not within 10 s after" in load.tables_of(load.Report("", "", [case]))
    settled = load.Report("", "", [replace(case, recovery_seconds=2.5)])
    assert "as before the load again 2.5 s after" in load.tables_of(settled)


def test_goodput_is_what_comes_before_deadline_and_end() -> None:
    """Late answers, refusals, and what drains after the load are in no goodput; the latency is that of the accepted."""
    step = load.Step(seconds=10.0, deadline=1.0)
    step.answers = [(0.0, 0.5, 200), (1.0, 0.9, 200), (2.0, 1.1, 200), (9.9, 0.5, 200), (3.0, 0.001, 503)]
    assert step.goodput == pytest.approx(0.2)
    assert step.latency(50) == pytest.approx(0.7)
    assert step.statuses == {200: 4, 503: 1}


_FAMILY = """
import subprocess, sys
busy = "import time\\nwhile time.process_time() < 0.4: pass\\nprint(flush=True)\\ninput()"
subprocess.run([sys.executable, "-c", busy])
"""


def test_cpu_and_memory_of_all_processes_of_a_service_are_counted() -> None:
    """With several front-ends the supervisor does little: its living children cost CPU time and memory."""
    with subprocess.Popen(
        [sys.executable, "-c", _FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert cpu_seconds(process.pid) >= 0.39
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        (own,) = (int(size) for size in re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE))
        assert proportional_kilobytes(process.pid) > 1.5 * own
        process.communicate("\n")


def test_each_step_of_an_answer_is_measured() -> None:
    """Every server of `benchmarks.steps` starts, answers rightly and ends; the table has a row for each."""
    command = [sys.executable, "-m", "benchmarks.steps", "--rounds", "1", "--seconds", "0.3"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == ["alone", "decode", "engine", "classify", "service"]
    assert all(int(images_a_second) > 0 and float(ms) > 0.1 for _, images_a_second, _, ms, _ in rows)
