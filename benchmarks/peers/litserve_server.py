"""LitServe with its batching on: `python litserve_server.py PORT`."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import torch
from work import MAX_BATCH_SIZE, MAX_DELAY_SECONDS, Network, prepare


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.network = Network()

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        return prepare(base64.b64decode(request["image"]))

    def batch(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return inputs

    def predict(self, inputs: list[torch.Tensor]) -> list[dict[str, Any]]:
        return self.network(inputs)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=MAX_DELAY_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="error")
