"""What the service's tests share: an application on a fresh directory, a client without a network, wire records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.app import create_app
from tailwatch_service.services import Services
from tailwatch_service.settings import Settings

API = "/api/v1"
ARROW = {"Content-Type": wire.CONTENT_TYPE}


@dataclass
class Live:
    """A running application and a client of it."""

    app: FastAPI
    client: httpx.AsyncClient

    @property
    def services(self) -> Services:
        found: Services = self.app.state.services
        return found

    async def run(self, name: str = "r", *, project: str = "p", **fields: Any) -> str:
        answer = await self.client.post(f"{API}/runs", json={"project": project, "name": name, **fields})
        assert answer.status_code in {200, 201}, answer.text
        return str(answer.json()["run_id"])

    async def send(self, run: str, batch: Batch | None = None, **meta: Any) -> httpx.Response:
        body = wire.encode(make_batch(**meta) if batch is None else batch)
        return await self.client.post(f"{API}/runs/{run}/batches", content=body, headers=ARROW)

    async def closed(self, run: str, step: int) -> dict[str, Any]:
        """A step, once it is closed."""
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
            answer = await self.client.get(f"{API}/runs/{run}/steps/{step}")
            if answer.status_code == 200 and answer.json()["closed"]:
                found: dict[str, Any] = answer.json()
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"step {step} did not close")


Start = Callable[..., AbstractAsyncContextManager[Live]]


def make_batch(*, sequences: int = 4, length: int = 50, seed: int = 0, **meta: Any) -> Batch:
    """A batch of plausible log-probs."""
    rng = np.random.default_rng(seed)
    infer = -rng.exponential(1.0, sequences * length).astype(np.float32)
    train = np.minimum(infer + rng.normal(0.0, 0.05, infer.shape).astype(np.float32), 0.0).astype(np.float32)
    given = {"step": 0, "world_size": 1, **meta}
    return Batch.from_arrays(
        BatchMeta(**given),
        infer_logprobs=infer,
        train_logprobs=train,
        cu_seqlens=np.arange(0, sequences * length + 1, length),
    )


def starter(data_dir: Path) -> Start:
    """Makes applications on one directory: `async with start(port=1) as live`."""

    @asynccontextmanager
    async def started(
        *, base_url: str = "http://127.0.0.1:8321", headers: dict[str, str] | None = None, **settings: Any
    ) -> AsyncIterator[Live]:
        app = create_app(Settings(**{"data_dir": data_dir, **settings}))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers) as client:
                yield Live(app, client)

    return started


def problem(answer: httpx.Response, status: int, *named: str) -> dict[str, Any]:
    """The problem of an answer, which has this status and names these things."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    assert found["request_id"] == answer.headers["x-request-id"]
    for part in named:
        assert part in answer.text, (part, answer.text)
    return found
