"""Child processes: the command that starts one, and the environment that it gets."""

from .environment import ONE_THREAD, Need, child_environment, loader_environment
from .start import command

__all__ = ["ONE_THREAD", "Need", "child_environment", "command", "loader_environment"]
