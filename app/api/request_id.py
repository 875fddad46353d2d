"""Request ids: the client's own, or a random one."""

from __future__ import annotations

import random
import re

# Seeded once by the operating system. Asking it for each request is a system call, which releases the interpreter's
# lock and then waits behind the decoding threads. Ids have to be unique, not unpredictable.
_random = random.Random(random.SystemRandom().getrandbits(256))


def new_request_id() -> str:
    """32 hex digits."""
    return f"{_random.getrandbits(128):032x}"


_HARMLESS = re.compile(r"[A-Za-z0-9_-]{1,64}")


def request_id_of(sent: str) -> str:
    """The id that a client sent, if it is valid, else a new one."""
    return sent if _HARMLESS.fullmatch(sent) else new_request_id()
