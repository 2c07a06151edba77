from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tailwatch_service.app import create_app
from tailwatch_service.edge import CONTENT_SECURITY_POLICY
from tailwatch_service.settings import Settings
from tests.service.support import API, Start, make_batch, problem

pytestmark = pytest.mark.asyncio


async def test_a_problem_has_one_shape(start: Start) -> None:
    async with start() as live:
        missing = problem(await live.client.get("/nowhere"), 404, "/nowhere")
        method = await live.client.put(f"{API}/runs")

        assert set(missing) == {"type", "title", "status", "detail", "errors", "request_id"}
        assert missing["type"].startswith("urn:tailwatch:problem:")
        problem(method, 405, "PUT")
        assert method.headers["allow"]
        problem(await live.client.get(f"{API}/runs/"), 404)
        invalid = problem(await live.client.get(f"{API}/runs", params={"limit": "many"}), 422)
        assert invalid["errors"][0]["column"] == "limit"
        assert "many" in invalid["errors"][0]["reason"]


async def test_a_bug_is_a_500_without_a_trace(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("secret detail of the inside")

    async with start() as live:
        monkeypatch.setattr("tailwatch_service.storage.runs.page", explode)

        found = problem(await live.client.get(f"{API}/runs"), 500)

        assert "secret" not in str(found)
        assert "Traceback" not in str(found)
        logged = next(record for record in caplog.records if record.name == "tailwatch.http")
        assert found["request_id"] in logged.getMessage()
        assert logged.exc_info is not None
        assert (await live.client.get("/healthz")).status_code == 200


async def test_a_database_that_is_away_is_a_503(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_args: Any, **_kwargs: Any) -> None:
        raise sa.exc.OperationalError("SELECT secret", {}, Exception("disk I/O error"))

    async with start() as live:
        monkeypatch.setattr("tailwatch_service.storage.runs.page", away)

        answer = await live.client.get(f"{API}/runs")

        assert "secret" not in str(problem(answer, 503))
        assert answer.headers["retry-after"] == "1"


async def test_ready_only_while_batches_can_be_stored(start: Start) -> None:
    async with start() as live:
        assert (await live.client.get("/readyz")).json()["checks"] == {"database": True, "writer": True}

        live.services.writer.close()

        answer = await live.client.get("/readyz")
        assert (answer.status_code, answer.json()["checks"]["writer"]) == (503, False)
        run = await live.run()
        problem(await live.send(run), 503)


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("x" * 65, False), ("a b", False), ("", False)])
async def test_the_request_id_is_the_clients_where_it_is_sane(start: Start, given: str, kept: bool) -> None:
    async with start() as live:
        answer = await live.client.get("/nowhere", headers={"X-Request-ID": given})

        assert (answer.headers["x-request-id"] == given) is kept
        assert problem(answer, 404)["request_id"]


@pytest.mark.parametrize("path", ["/", "/nowhere", "/docs", f"{API}/runs", "/healthz"])
async def test_every_answer_has_the_security_headers(start: Start, path: str) -> None:
    async with start() as live:
        headers = (await live.client.get(path)).headers

        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'self'" in CONTENT_SECURITY_POLICY
        assert ("no-store" in headers.get("cache-control", "")) or not path.startswith("/api")


async def test_the_docs_need_nothing_from_elsewhere(start: Start) -> None:
    async with start() as live:
        text = (await live.client.get("/docs")).text

        assert "/api/v1/runs/{run}/batches" in text
        assert not re.search(r"(src|href)=\"(https?:)?//", text)
        assert "<script" not in text
        assert " style=" not in text


async def test_the_openapi_document_is_whole(start: Start) -> None:
    async with start() as live:
        document = (await live.client.get("/openapi.json")).json()

        assert document["openapi"].startswith("3.1")
        calls = [(path, method, call) for path, calls in document["paths"].items() for method, call in calls.items()]
        ids = [call["operationId"] for _, _, call in calls]
        assert len(ids) == len(set(ids))
        for path, method, call in calls:
            assert call["summary"], (path, method)
            assert "application/problem+json" in call["responses"]["default"]["content"]
            declared = {one["name"] for one in call.get("parameters", ()) if one["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))
            if method in {"post", "patch"} and not path.startswith("/log"):
                assert call["requestBody"]["content"], path
        for reference in re.findall(r'"\$ref":"#/([^"]+)"', (await live.client.get("/openapi.json")).text):
            node: Any = document
            for part in reference.split("/"):
                node = node[part]
        assert {f"{API}/runs", f"{API}/runs/{{run}}/live", f"{API}/registry", "/metrics"} <= set(document["paths"])


async def test_what_was_acknowledged_is_there_after_a_restart(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        first = await live.send(run, make_batch(step=1))
    async with start() as live:
        again = await live.send(run, make_batch(step=1))

        assert (again.status_code, again.json()["status"]) == (200, "duplicate")
        assert again.json()["batch_id"] == first.json()["batch_id"]
        await live.closed(run, 1)


async def test_the_factory_opens_nothing(tmp_path: Path) -> None:
    create_app(Settings(data_dir=tmp_path / "data"))

    assert not (tmp_path / "data").exists()


async def test_importing_the_service_loads_no_torch() -> None:
    code = "import sys, tailwatch_service.app, tailwatch_service.cli; print('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout.strip() == "False"


async def test_requests_are_counted_by_route_and_never_by_path(start: Start) -> None:
    logging.getLogger("tailwatch.http").setLevel(logging.ERROR)
    async with start() as live:
        run = await live.run()
        await live.client.get(f"{API}/runs/{run}")
        await live.client.get("/made/up/path")

        text = (await live.client.get("/metrics")).text

        assert 'route="/api/v1/runs/{run}"' in text or 'route="/runs/{run}"' in text
        assert 'route="unknown",status="404"' in text
        assert "made" not in text
        assert run not in text
