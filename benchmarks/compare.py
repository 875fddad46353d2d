"""This service and others on the same work, in turn: `python -m benchmarks.compare [PEER ...]`.

The same photos, the same ResNet-50 from one file, the same clients, each server alone on the machine. Figures are
medians of the rounds. Each peer is installed into an environment of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.bench.pace import ratios
from app.errors import StartError
from benchmarks.report import heading, median, options_of, photos_of, say, table
from benchmarks.turns import Load, Server, our_service

_HERE = Path(__file__).parent
_ENVIRONMENTS = Path(".venv-peers")
_WARM_UP_SECONDS = 3.0
_BOUNDARY = "a-boundary-that-no-photo-holds"


def _base64(image: bytes) -> bytes:
    return b'{"image": "%b"}' % base64.b64encode(image)


def _form(image: bytes) -> bytes:
    head = b'Content-Disposition: form-data; name="images"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    boundary = _BOUNDARY.encode()
    return b"--%b\r\n%b%b\r\n--%b--\r\n" % (boundary, head, image, boundary)


@dataclass(frozen=True)
class Peer:
    """A server: its packages, its command (`{bin}` is its environment's folder of programs), and its requests."""

    packages: tuple[str, ...]
    command: str
    body: Callable[[bytes], bytes] = bytes
    content_type: str = "image/jpeg"
    path: str = "/predict"

    def server(self, name: str, images: Sequence[bytes], environment: dict[str, str]) -> Server:
        command = self.command.format(bin=install(name, self), port="{port}").split()
        request = {"path": self.path, "content_type": self.content_type}
        bodies = [self.body(image) for image in images]
        return Server(name, command, bodies, environment, request, _HERE / "peers", signal.SIGTERM)


PEERS = {
    "plain-fastapi": Peer(
        ("fastapi", "uvicorn[standard]"),
        "{bin}/python -m uvicorn plain_fastapi:app --log-level error --port {port}",
    ),
    "litserve": Peer(("litserve",), "{bin}/python litserve_server.py {port}", _base64, "application/json"),
    "mosec": Peer(("mosec",), "{bin}/python mosec_server.py --timeout 60000 --port {port}", path="/inference"),
    "bentoml": Peer(
        ("bentoml",),
        "{bin}/bentoml serve bentoml_server:Classifier --port {port}",
        _form,
        f"multipart/form-data; boundary={_BOUNDARY}",
    ),
}
_USUAL = ("plain-fastapi", "litserve", "mosec")


def install(name: str, peer: Peer) -> Path:
    """The folder of programs of the peer's environment, which has its packages, and PyTorch from this environment."""
    home = _ENVIRONMENTS / name
    if not (home / ".ready").exists():
        say(f"installing {name} …")
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        (site,) = home.glob("lib/python3*/site-packages")
        own = next(path for path in sys.path if path.endswith("site-packages"))
        (site / "torch.pth").write_text(own + "\n", encoding="utf-8")
        subprocess.run([home / "bin/pip", "install", "--quiet", *peer.packages], check=True)
        (home / ".ready").touch()
    return home.absolute() / "bin"


def table_of(servers: Sequence[Server]) -> str:
    """Medians over the rounds; a ratio is the median of the rounds' ratios to the first server."""
    first = servers[0]
    columns = ("server", "images/s", f"{first.name} is", "p50 ms", "p99 ms", "first answer after s", "errors")
    rows = []
    for each in servers:
        errors: Counter[str] = Counter()
        for step in (turn.step for turn in each.turns):
            errors += Counter(step.connection_errors) + Counter({"no answer": step.unanswered})
            errors += Counter({status: count for status, count in step.statuses.items() if status != "200"})
        rows.append(
            (
                each.name,
                median([rate for rate in each.rates if rate], ".1f"),
                median(ratios(first.rates, each.rates), ".2f", "x"),
                median(each.latencies_ms("p50"), ".0f"),
                median(each.latencies_ms("p99"), ".0f"),
                median([turn.start_seconds for turn in each.turns if turn.step.good], ".1f"),
                dict(errors) or 0,
            )
        )
    return table(columns, rows)


def make_weights(path: Path) -> None:
    """An untrained ResNet-50: speed does not depend on the weights."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet50

    torch.manual_seed(0)
    save_file(resnet50().state_dict(), path)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = options_of(__doc__, photos=True, clients=16, seconds=15.0, rounds=3)
    # No `choices`: with nargs="*" argparse compares the default, as one value, with them.
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}; {' '.join(_USUAL)}")
    parser.add_argument("--null", action="store_true", help="no network: the cost of the servers alone")
    parser.add_argument("--int8", type=Path, help="a quantized model for this service, measured too")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.peers if name not in PEERS]:
        parser.error(f"there is no peer {', '.join(unknown)}; choose from {', '.join(PEERS)}")
    options.peers = options.peers or list(_USUAL)
    return options


def servers_of(options: argparse.Namespace, images: Sequence[bytes], weights: Path) -> list[Server]:
    quiet = ("--log-level", "warning")
    own = ("--backend", "null") if options.null else ("--weights", str(weights))
    servers = [our_service("resnet-serve", *quiet, *own, bodies=images, http_workers="auto")]
    if options.int8:
        flags = ("--weights", str(options.int8.absolute()))
        servers.append(our_service("resnet-serve int8", *quiet, *flags, bodies=images, http_workers="auto"))
    environment = os.environ | {
        "PEER_WEIGHTS": "" if options.null else str(weights),
        "CUDA_VISIBLE_DEVICES": "",
        "BENTOML_DO_NOT_TRACK": "True",
    }
    return servers + [PEERS[name].server(name, images, environment) for name in options.peers]


async def measure(servers: Sequence[Server], options: argparse.Namespace) -> None:
    async with Load.start(options.clients) as load:
        for number in range(options.rounds):
            for server in servers:
                say(f"round {number + 1}: {server.name} …")
                try:
                    async with load.running(server) as running:
                        await load.turn(running, _WARM_UP_SECONDS, options.seconds)
                except StartError as error:
                    # The rounds of the others are kept.
                    say(f"{server.name}: {error}")
                    server.failed()


def main() -> None:
    options = parse()
    photos = photos_of(options.photos)
    with tempfile.TemporaryDirectory() as temporary:
        weights = Path(temporary) / "resnet50.safetensors"
        if not options.null:
            make_weights(weights)
        servers = servers_of(options, photos.bodies, weights)
        asyncio.run(measure(servers, options))
    size = statistics.median(map(len, photos.bodies))
    print(
        heading(
            f"{photos.source}, {size / 1e3:.0f} kB at the median; {options.clients} closed-loop clients; medians of "
            f"{options.rounds} rounds of {options.seconds:g} s, the servers in turn"
        )
    )
    print(table_of(servers))


if __name__ == "__main__":
    main()
