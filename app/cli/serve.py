"""resnet-serve serve"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StartError
from ..logs import set_up_logging
from ..settings import Settings, unknown_variables
from .console import say_error, stderr

if TYPE_CHECKING:
    from ..pool import ModelFacts

logger = logging.getLogger(__name__)

_EXAMPLE = Path("app/data/example.jpg")


def serve(settings: Settings) -> None:
    """Serve the classifier over HTTP until Ctrl-C or SIGTERM."""
    from ..interpreter import hold_stop_signals, leave
    from ..resources import raise_open_file_limit

    # Before any other thread: the server takes them when it has its handlers.
    hold_stop_signals()
    # Every process that serves is this one or its child.
    raise_open_file_limit()
    from ..workers import serve as run
    from .progress import TerminalReporter

    log_format = settings.log_format
    if log_format == "auto":
        log_format = "text" if stderr.is_terminal else "json"
    # On a terminal lines keep their order among progress bars; elsewhere nobody waits for them.
    set_up_logging(settings.log_level, log_format, in_background=not stderr.is_terminal)
    for line in unknown_variables():
        logger.warning("%s", line)
    failure: Exception | None
    try:
        with TerminalReporter() as reporter:
            failure = run(settings, reporter, _announce)
    except StartError as error:
        failure = error
    if failure is not None:
        if stderr.is_terminal:
            say_error(failure)
        else:
            logger.error("Error: %s", failure)
        leave(1)
    _say("Stopped.")
    leave(0)


def _announce(model: ModelFacts, address: str) -> None:
    """The last lines of the start: what serves, where, and a command that works when pasted."""
    _say(f"Ready: {model.identity.name} ({model.identity.version}) on {model.device}, {address}/docs", "bold green")
    _say(f"Try:   {example_command(address)}")


def _say(text: str, style: str = "") -> None:
    """To a person at a terminal; elsewhere it is a log line like any other."""
    if stderr.is_terminal:
        stderr.print(text, style=style, markup=False)
    else:
        logger.info("%s", text)


def example_command(address: str) -> str:
    """A curl that works when pasted: with the file that a clone has, else with the picture that the service has."""
    if _EXAMPLE.is_file():
        return f"curl -sS --data-binary @{_EXAMPLE} {address}/predict"
    return f"curl -sS {address}/static/example.jpg | curl -sS --data-binary @- {address}/predict"
