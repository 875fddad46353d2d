"""The report of a run, which is written as JSON, text and picture; its warnings and failures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..errors import SettingError
from ..files import write_whole
from .costs import Costs, Round
from .machine import Machine
from .photos import PhotoFacts
from .search import Highest
from .soak import Memory
from .steps import Step

# With fewer requests, a 99th percentile depends on fewer than five of them.
ENOUGH_REQUESTS = 500
_LAG_MS = 5.0
_QUIET = 0.9


class ServerFacts(BaseModel):
    """The server under measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    was_started: bool
    """Whether the run started it, with these settings."""
    settings: dict[str, str]
    version: str
    model: str
    model_version: str
    backend: str
    device: str
    planned_batch: int | None
    """The batch size that the warm-up chooses; None if it was not measured."""
    ready_seconds: float | None


class Report(BaseModel):
    """All results of a run, with machine, versions and server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    command: str
    began_at: str
    """UTC, ISO 8601."""
    seconds: float
    kind: Literal["standard", "quick", "soak"]
    machine: Machine
    """The load generator's machine; the server's too, if the run started it."""
    versions: dict[str, str]
    server: ServerFacts
    photos: PhotoFacts
    target_p99_ms: float
    arrivals: str
    clients: int
    rounds: tuple[Round, ...]
    rooflines_missing: str | None
    """The reason if there are no rounds."""
    costs: Costs | None
    closed: Step
    """The last closed loop, or the soak."""
    single: Step | None
    """The last closed loop with one client."""
    curve: tuple[Step, ...]
    """Open-loop steps by their rate."""
    highest: Highest | None
    memory: Memory | None
    warnings: tuple[str, ...]

    @property
    def failures(self) -> list[str]:
        """Reasons why the run failed: wrong answers, and in a soak missing answers and growth."""
        found = []
        if wrong := sum(step.wrong for step in self.all_steps):
            found.append(f"{wrong} answers were wrong: no prediction, or not that of the image that was sent.")
        if self.kind == "soak" and (lost := self.closed.requests - self.closed.good - self.closed.wrong):
            found.append(f"{lost} of {self.closed.requests} requests got no prediction: {self.closed.outcomes}")
        if self.kind == "soak" and self.memory is not None and self.memory.grew:
            found.append("The server grew: see its memory and open files.")
        return found

    @property
    def all_steps(self) -> list[Step]:
        return steps_of(self.rounds, self.closed, self.single, self.curve)


def steps_of(rounds: Sequence[Round], closed: Step, single: Step | None, curve: Sequence[Step]) -> list[Step]:
    """Each step once: if there are rounds, `closed` and `single` are the last round's."""
    loops = [step for each in rounds for step in (each.http, each.served, each.single)]
    return [*(loops or [closed, *([single] if single else [])]), *curve]


def warnings_of(steps: list[Step], rounds: Sequence[Round], cpus: int, skipped: tuple[str, ...]) -> tuple[str, ...]:
    """Facts that limit how far the figures can be trusted."""
    found = [f"Not sent: {each}" for each in skipped]
    # Decoding needs only CPU: if it got less than all of it, other processes used the rest.
    got = min((each.decode.rate * each.decode.cpu_seconds_an_image / cpus for each in rounds), default=1.0)
    if got < _QUIET:
        found.append(
            f"Decoding alone got {got:.0%} of the {cpus} CPUs: other processes took the rest. Ratios to what is "
            "possible, and latencies, are not to be trusted; measure on a quiet machine."
        )
    if skimpy := [step.requests for step in steps if step.loop == "open" and step.requests < ENOUGH_REQUESTS]:
        found.append(
            f"Some steps have {min(skimpy)} requests: a 99th percentile of fewer than {ENOUGH_REQUESTS} is a hint only."
        )
    late = max((step.send_lag_p99_ms for step in steps), default=0.0)
    if late > _LAG_MS:
        found.append(
            f"The load generator was up to {late:.0f} ms late (99th percentile of a step), which is in the latencies: "
            "it has too little CPU beside the server."
        )
    if failed := sum(sum(step.connection_errors.values()) for step in steps):
        found.append(f"{failed} requests ended with their connection.")
    return tuple(found)


def check_writable(path: Path) -> None:
    """Checked before minutes of measuring. Raises `SettingError`."""
    if not path.name or path.is_dir():
        raise SettingError(
            f"--output: {path} is a folder; name the report's file in it, such as {path / 'bench.json'}."
        )
    if path.suffix.lower() == ".png":
        raise SettingError(f"--output: {path} is where the picture goes; name the report, such as {path.stem}.json.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingError(f"--output: {path.parent} is no folder that can be written to.")


def write_report(report: Report, path: Path) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, (json.dumps(report.model_dump(mode="json"), indent=1) + "\n").encode())
