from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tailwatch_service.app import create_app
from tailwatch_service.errors import SettingsError, TooManyRequests
from tailwatch_service.gate import COOKIE, Gate, is_https
from tailwatch_service.settings import Limits, Settings
from tailwatch_service.storage import keys
from tailwatch_service.storage.database import Database
from tailwatch_service.types import Scope
from tests.service.support import API, Live, Start, make_batch, problem

HOST = "http://127.0.0.1:8321"


def make_key(live: Live, *scopes: Scope, project: str | None = None) -> tuple[str, dict[str, str]]:
    """A key's id, and the header that shows it."""
    key, secret = keys.create(live.services.db, name="test", scopes=scopes or ("read",), now=1.0, project=project)
    live.services.gate.forget()
    return key.key_id, {"Authorization": f"Bearer {secret}"}


@pytest.mark.asyncio
async def test_without_keys_loopback_is_open(start: Start) -> None:
    async with start() as live:
        run = await live.run()

        assert (await live.client.delete(f"{API}/runs/{run}")).status_code == 204


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8321", True),
        ("localhost", True),
        ("[::1]:8321", True),
        ("monitor.local", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:8321", False),
        ("", False),
    ],
)
async def test_an_open_service_answers_only_to_its_own_names(start: Start, host: str, allowed: bool) -> None:
    async with start(allowed_hosts=("monitor.local",)) as live:
        answer = await live.client.get(f"{API}/runs", headers={"Host": host})

        assert answer.status_code == (200 if allowed else 403)
        if not allowed:
            problem(answer, 403, "TAILWATCH_ALLOWED_HOSTS")
        assert (await live.client.get("/healthz", headers={"Host": host})).status_code == 200


@pytest.mark.asyncio
async def test_another_sites_page_cannot_write_to_an_open_service(start: Start) -> None:
    async with start() as live:
        spec = {"project": "p", "name": "r"}

        foreign = await live.client.post(f"{API}/runs", json=spec, headers={"Origin": "https://evil.example"})
        own = await live.client.post(f"{API}/runs", json=spec, headers={"Origin": HOST})

        problem(foreign, 403, "evil.example")
        assert own.status_code == 201


@pytest.mark.asyncio
async def test_the_first_key_closes_the_service(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        _, reader = make_key(live, "read")

        refused = await live.client.get(f"{API}/runs")

        assert refused.headers["www-authenticate"].startswith("Bearer")
        problem(refused, 401, "Authorization")
        problem(await live.send(run), 401)
        assert (await live.client.get(f"{API}/runs", headers=reader)).status_code == 200
        for header in ("Bearer nonsense", "Basic abc", "Bearer", "Bearer \xff"):
            problem(await live.client.get(f"{API}/runs", headers=[(b"Authorization", header.encode("latin-1"))]), 401)
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await live.client.get(path)).status_code == 200


@pytest.mark.asyncio
async def test_scopes(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        _, reader = make_key(live, "read")
        _, writer = make_key(live, "write")
        _, admin = make_key(live, "admin")
        spec = {"project": "p", "name": "r"}

        problem(await live.client.post(f"{API}/runs", json=spec, headers=reader), 403, "write", "read")
        problem(await live.client.get(f"{API}/runs", headers=writer), 403, "read")
        assert (await live.client.post(f"{API}/runs", json=spec, headers=writer)).status_code == 200
        problem(await live.client.delete(f"{API}/runs/{run}", headers=writer), 403, "admin")
        assert (await live.client.get(f"{API}/runs", headers=admin)).status_code == 200
        assert (await live.client.delete(f"{API}/runs/{run}", headers=admin)).status_code == 204
        actions = [entry.action for entry in keys.audited(live.services.db)]
        assert actions[0] == "run_deleted"
        assert actions.count("key_created") == 3


@pytest.mark.asyncio
async def test_a_key_of_one_project_reaches_no_other(start: Start) -> None:
    async with start() as live:
        mine, theirs = await live.run("r", project="mine"), await live.run("r", project="theirs")
        _, key = make_key(live, "read", "write", project="mine")

        listed = (await live.client.get(f"{API}/runs", headers=key)).json()["runs"]

        assert [run["run_id"] for run in listed] == [mine]
        problem(await live.client.get(f"{API}/runs", params={"project": "theirs"}, headers=key), 403, "mine")
        problem(await live.client.get(f"{API}/runs/{theirs}", headers=key), 404)
        live.client.headers.update(key)
        problem(await live.send(theirs, make_batch()), 404)
        assert (await live.send(mine, make_batch())).status_code == 201
        problem(await live.client.post(f"{API}/runs", json={"project": "theirs", "name": "x"}), 403, "mine")


@pytest.mark.asyncio
async def test_a_revoked_key_is_unknown(start: Start) -> None:
    async with start() as live:
        key_id, reader = make_key(live, "read")
        make_key(live, "read")
        assert (await live.client.get(f"{API}/runs", headers=reader)).status_code == 200

        keys.revoke(live.services.db, key_id, now=2.0)
        live.services.gate.forget()

        problem(await live.client.get(f"{API}/runs", headers=reader), 401, "revoked")


@pytest.mark.asyncio
async def test_secrets_are_nowhere_in_the_database(start: Start) -> None:
    async with start() as live:
        _, header = make_key(live, "read")
        secret = header["Authorization"].partition(" ")[2]
        assert len(secret) >= 43
        answer = await live.client.post("/login", json={"key": secret})
        cookie = answer.cookies[COOKIE]
        folder = live.services.settings.data_dir
        stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())

        assert secret.encode() not in stored
        assert cookie.encode() not in stored


# --- the cookie --------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_login_reads_and_writes_from_our_own_pages_only(start: Start) -> None:
    async with start() as live:
        _, header = make_key(live, "read", "write")
        secret = header["Authorization"].partition(" ")[2]

        answer = await live.client.post("/login", json={"key": secret})

        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie
        assert secret not in answer.text + answer.headers["set-cookie"]
        assert (await live.client.get(f"{API}/runs")).status_code == 200
        spec = {"project": "p", "name": "r"}
        problem(await live.client.post(f"{API}/runs", json=spec), 403, "Origin")
        for origin in ("https://evil.example", "null", "https://127.0.0.1:8321"):
            problem(await live.client.post(f"{API}/runs", json=spec, headers={"Origin": origin}), 403, "Origin")
        assert (await live.client.post(f"{API}/runs", json=spec, headers={"Origin": HOST})).status_code == 201

        assert (await live.client.post("/logout", headers={"Origin": HOST})).status_code == 204
        live.client.cookies.set(COOKIE, answer.cookies[COOKIE])  # a copy of it is worth nothing any more
        problem(await live.client.get(f"{API}/runs"), 401)


@pytest.mark.asyncio
async def test_a_form_login_leads_on_to_our_own_pages_only(start: Start) -> None:
    async with start() as live:
        _, header = make_key(live, "read")
        form = {"key": header["Authorization"].partition(" ")[2]}

        for target, expected in {"/runs/x": "/runs/x", "//evil": "/", "https://evil": "/", "/\\evil": "/"}.items():
            answer = await live.client.post("/login", params={"next": target}, data=form)
            assert (answer.status_code, answer.headers["location"]) == (303, expected)


@pytest.mark.asyncio
async def test_wrong_logins(start: Start) -> None:
    async with start() as live:
        make_key(live, "read")

        problem(await live.client.post("/login", json={"key": "wrong"}), 401)
        problem(await live.client.post("/login", json={}), 422, "key")
        problem(await live.client.post("/login", content=b"x", headers={"Content-Type": "text/plain"}), 415)
        problem(await live.client.post("/login", json={"key": "k"}, headers={"Origin": "https://evil.example"}), 403)
        answers = [await live.client.post("/login", json={"key": "guess"}) for _ in range(25)]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) >= 1


@pytest.mark.asyncio
async def test_behind_https_the_cookie_is_secure(start: Start) -> None:
    async with start(public_url="https://tailwatch.example") as live:
        _, header = make_key(live, "read", "write")
        answer = await live.client.post("/login", json={"key": header["Authorization"].partition(" ")[2]})

        assert "secure" in answer.headers["set-cookie"].lower()
        token = {"Cookie": f"{COOKIE}={answer.cookies[COOKIE]}", "Origin": "https://tailwatch.example"}
        made = await live.client.post(f"{API}/runs", json={"project": "p", "name": "r"}, headers=token)
        assert made.status_code == 201


@pytest.mark.asyncio
async def test_a_page_leads_to_the_login(start: Start) -> None:
    async with start() as live:
        make_key(live, "read")

        answer = await live.client.get("/", headers={"Accept": "text/html"})

        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/login")


# --- limits, addresses -------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_requests_of_a_key_are_limited(start: Start) -> None:
    async with start(limits=Limits(requests_per_minute=5)) as live:
        _, first = make_key(live, "read")
        _, second = make_key(live, "read")

        answers = [await live.client.get(f"{API}/runs", headers=first) for _ in range(8)]

        assert [answer.status_code for answer in answers[:5]] == [200] * 5
        problem(answers[-1], 429, "5 requests a minute")
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert (await live.client.get(f"{API}/runs", headers=second)).status_code == 200


def test_the_bucket_refills_evenly(tmp_path: Path) -> None:
    now = 0.0
    db = Database.open(None, data_dir=tmp_path)
    gate = Gate(db, settings=Settings(), monotonic=lambda: now)
    for _ in range(60):
        gate.spend("k", per_minute=60)
    with pytest.raises(TooManyRequests) as caught:
        gate.spend("k", per_minute=60)
    assert caught.value.retry_after_s == pytest.approx(1.0)
    now = 2.0
    gate.spend("k", per_minute=60)
    gate.spend("k", per_minute=60)
    with pytest.raises(TooManyRequests):
        gate.spend("k", per_minute=60)
    gate.spend("k", per_minute=0)
    db.close()


async def _start_up(**settings: Any) -> None:
    app = create_app(Settings(**settings))
    async with app.router.lifespan_context(app):
        pass


@pytest.mark.asyncio
async def test_an_address_others_can_reach_needs_a_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SettingsError, match="tailwatch keys create"):
        await _start_up(host="0.0.0.0", data_dir=tmp_path)

    await _start_up(host="0.0.0.0", data_dir=tmp_path, insecure=True)
    assert "INSECURE" in caplog.text

    from tailwatch_service.storage.database import Database

    db = Database.open(None, data_dir=tmp_path)
    keys.create(db, name="k", scopes=("read",), now=1.0)
    db.close()
    await _start_up(host="0.0.0.0", data_dir=tmp_path)


@pytest.mark.asyncio
async def test_beyond_loopback_metrics_take_a_key(start: Start) -> None:
    async with start(host="0.0.0.0", insecure=True, base_url="http://tailwatch.example") as live:
        assert (await live.client.get("/metrics")).status_code == 200
        _, reader = make_key(live, "read")
        _, writer = make_key(live, "write")

        problem(await live.client.get("/metrics"), 401)
        problem(await live.client.get("/metrics", headers=writer), 403)
        assert (await live.client.get("/metrics", headers=reader)).status_code == 200


def test_https_is_what_the_browser_speaks() -> None:
    from fastapi import Request

    def request(scheme: str) -> Request:
        return Request(
            {"type": "http", "scheme": scheme, "path": "/", "headers": [(b"host", b"h")], "query_string": b""}
        )

    assert is_https(request("https"), Settings())
    assert not is_https(request("http"), Settings())
    assert is_https(request("http"), Settings(public_url="https://h"))
