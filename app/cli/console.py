"""What a person sees: messages on stderr, answers on stdout."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.markup import escape

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)


def say_error(error: Exception) -> None:
    """One clear message."""
    stderr.print(f"[bold red]Error:[/] {escape(str(error))}")


def set_up_logging(level: str) -> None:
    """Log lines on stderr."""
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
        stream=sys.stderr,
    )
    # Each request of the download's HTTP client is no news, and uvicorn says twice what `serve` says once.
    for name in ("httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
