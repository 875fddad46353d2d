"""Clients that are silent, stuck half-way, or send a byte a second: `python -m tests.slow_clients ADDRESS COUNT`.

A program of its own, so that what they take of this process is not taken for what they take of the service. Says
"connected" once all are, goes on until its standard input ends, and prints how many ended how: the status that they
were answered, or "closed". Who is cut comes again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

_HEAD = b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000\r\n"
# What is sent at once, and whether more follows, a byte a second.
_KINDS = (
    (b"", False),
    (_HEAD[:40], False),
    (_HEAD[:40], True),
    (_HEAD + b"\r\n1", False),
    (_HEAD + b"\r\n1", True),
)


async def drip(writer: asyncio.StreamWriter) -> None:
    while True:
        await asyncio.sleep(1)
        writer.write(b"a")


async def one(host: str, port: int, number: int, ends: Counter[str], connected: asyncio.Semaphore) -> None:
    """One client after another, each with the same manners."""
    first, drips = _KINDS[number % len(_KINDS)]
    while True:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(first)
        connected.release()
        dripping = asyncio.create_task(drip(writer)) if drips else None
        try:
            ends[(await reader.readuntil(b"\r\n"))[9:12].decode()] += 1
        except asyncio.IncompleteReadError:
            ends["closed"] += 1
        except ConnectionError:
            ends["reset"] += 1
        finally:
            if dripping:
                dripping.cancel()
            writer.transport.abort()


async def main(address: str, count: int) -> None:
    host, port = address.removeprefix("http://").split(":")
    ends: Counter[str] = Counter()
    connected = asyncio.Semaphore(0)
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(one(host, int(port), number, ends, connected)))
        await asyncio.sleep(0.01)  # as crowds come, and not all in one moment for ever
    for _ in range(count):
        await connected.acquire()
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(ends), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
