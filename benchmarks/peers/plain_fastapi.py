"""The simplest service: FastAPI, a thread for each request, no batches. Run by uvicorn."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from work import Network, prepare

app = FastAPI()
network = Network()


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    body = await request.body()
    answer: dict[str, Any] = await run_in_threadpool(lambda: network([prepare(body)])[0])
    return answer
