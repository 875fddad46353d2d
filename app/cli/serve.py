"""resnet-serve serve"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..settings import Settings, unknown_variables
from .console import say_error, set_up_logging, stderr

if TYPE_CHECKING:
    from ..loading import LoadedModel

_EXAMPLE = Path("app/data/example.jpg")


def serve(settings: Settings) -> None:
    """Serve the classifier over HTTP until Ctrl-C or SIGTERM."""
    from ..process import leave
    from ..process import serve as run
    from .progress import TerminalReporter

    set_up_logging(settings.log_level)
    for line in unknown_variables():
        logging.getLogger(__name__).warning("%s", line)
    with TerminalReporter() as reporter:
        failure = run(settings, reporter, _announce)
    if failure is not None:
        say_error(failure)
        leave(1)
    stderr.print("Stopped.")
    leave(0)


def _announce(model: LoadedModel, address: str) -> None:
    """The last line of the start: what serves, where, and a command that works when pasted."""
    stderr.print(
        f"[bold green]Ready:[/] {model.identity.name} ({model.identity.version}) on {model.device}, {address}/docs\n"
        f"Try:   {example_command(address)}"
    )


def example_command(address: str) -> str:
    """A curl that works when pasted: with the file that a clone has, else with the picture that the service has."""
    if _EXAMPLE.is_file():
        return f"curl -sS --data-binary @{_EXAMPLE} {address}/predict"
    return f"curl -sS {address}/static/example.jpg | curl -sS --data-binary @- {address}/predict"
