"""resnet-serve doctor"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SettingError
from ..logs import set_up_logging
from ..settings import Settings
from .console import stdout

if TYPE_CHECKING:
    from ..doctor import Report


def doctor(
    settings: Settings | None,
    wrong: SettingError | None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what the service sees of this machine and its settings, and what is wrong: for a bug report, secrets left
    out. Exit status 1 where something is wrong.
    """
    from ..doctor import diagnose

    # Log lines, the libraries' and this service's, are not part of the report.
    set_up_logging("error")
    report = diagnose(settings, wrong)
    if as_json:
        stdout.print(json.dumps(report.document(), ensure_ascii=False), markup=False)
    else:
        _show(report)
    raise typer.Exit(1 if report.problems else 0)


def _show(report: Report) -> None:
    for section, facts in report.facts.items():
        stdout.print(section, style="bold", markup=False)
        width = max(map(len, facts))
        for name, value in facts.items():
            stdout.print(f"  {name:<{width}}  {value}", markup=False)
    for title, lines in (("notes", report.notes), ("wrong", report.problems)):
        if lines:
            stdout.print(title, style="bold", markup=False)
        for line in lines:
            stdout.print(f"  - {line}", markup=False)
    if not report.problems:
        stdout.print("Nothing is wrong.", style="bold", markup=False)
