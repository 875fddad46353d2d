"""The command line. No logic of its own: each command is a few calls into the rooms below."""

from .main import main

__all__ = ["main"]
