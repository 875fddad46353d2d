"""Output of the command line: messages on stderr, results on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)


def say_error(error: Exception) -> None:
    """Print an error as one message."""
    stderr.print(f"[bold red]Error:[/] {escape(str(error))}")
