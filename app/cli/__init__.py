"""The command line. It has no logic of its own: each command is a few calls into the lower rooms."""

from .main import main

__all__ = ["main"]
