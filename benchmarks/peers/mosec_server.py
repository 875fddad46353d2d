"""Mosec: two processes that decode, one that runs the network: `python mosec_server.py --port PORT`."""

from __future__ import annotations

from typing import Any

import torch
from mosec import Server, Worker
from work import MAX_BATCH_SIZE, MAX_DELAY_SECONDS, Network, prepare


class Decode(Worker):
    def __init__(self) -> None:
        super().__init__()
        # One for each process: with two the processes fight for the cores.
        torch.set_num_threads(1)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> torch.Tensor:
        return prepare(data)


class Infer(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, data: list[torch.Tensor]) -> list[dict[str, Any]]:
        return self.network(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=2)
    server.append_worker(Infer, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=int(MAX_DELAY_SECONDS * 1e3))
    server.run()
