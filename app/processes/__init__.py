"""Child processes: how one is started, limited and ended, how processes exchange messages, and how they share memory.

start          the command line of a child, and the script that runs there
environment    the part of this process's environment that a child gets
children       start, signal, wait
limits         resource limits that a process sets on itself
limited        run a program that reads a hostile file, within limits
framing        the frame of a message, and records of a fixed size
channel        messages and descriptors between two processes
error_codec    errors in messages
shared_memory  memory passed by its descriptor
"""

from .environment import ONE_THREAD, Need, child_environment, loader_environment
from .start import command

__all__ = ["ONE_THREAD", "Need", "child_environment", "command", "loader_environment"]
