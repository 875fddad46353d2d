"""BentoML with its adaptive batching: `bentoml serve bentoml_server:Classifier --port PORT`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml
from work import MAX_BATCH_SIZE, Network, prepare


@bentoml.service(workers=1, traffic={"timeout": 60})
class Classifier:
    def __init__(self) -> None:
        self.network = Network()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=10_000)
    def predict(self, images: list[Path]) -> list[dict[str, Any]]:
        return self.network([prepare(path.read_bytes()) for path in images])
