"""One POST against services that behave and misbehave: an answer always, an exception never."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from tailwatch_collectors.transport import MAX_ANSWER_BYTES, Answer, HttpTransport

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService


@pytest.fixture
def transport(service: FakeService) -> Iterator[HttpTransport]:
    transport = HttpTransport(url=service.url, api_key="key")
    yield transport
    transport.close()


def _post(transport: HttpTransport, body: bytes = b"{}", *, timeout: float = 10.0) -> Answer:
    return transport.post("/things", body=body, headers={"Content-Type": "application/json"}, timeout=timeout)


def test_a_large_body_arrives_whole(service: FakeService, transport: HttpTransport) -> None:
    body = bytes(range(256)) * 4096 * 3 + b"tail"

    assert _post(transport, body).accepted
    assert service.calls[0].body == body
    assert service.calls[0].headers["authorization"] == "Bearer key"
    assert service.calls[0].headers["user-agent"].startswith("tailwatch-collectors/")
    assert "transfer-encoding" not in service.calls[0].headers


def test_no_key_no_header(service: FakeService) -> None:
    transport = HttpTransport(url=service.url, api_key=None)
    _post(transport)
    transport.close()

    assert "authorization" not in service.calls[0].headers


def test_an_empty_answer_is_an_answer(service: FakeService, transport: HttpTransport) -> None:
    service.script("things", status=202, body=b"")

    assert _post(transport) == Answer(status=202, content={})


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    transport = HttpTransport(url=f"http://127.0.0.1:{port}", api_key=None)
    answer = _post(transport)
    transport.close()

    assert answer.status is None
    assert answer.failure is not None
    assert "ConnectError" in answer.failure


def test_a_certificate_is_checked_against_the_authorities_that_are_known(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    service._server.socket = context.wrap_socket(service._server.socket, server_side=True)
    url = service.url.replace("http:", "https:")

    def ask() -> Answer:
        transport = HttpTransport(url=url, api_key="key")
        answer = _post(transport)
        transport.close()
        return answer

    answer = ask()
    assert answer.status is None
    assert answer.failure is not None
    assert "CERTIFICATE_VERIFY_FAILED" in answer.failure
    assert service.calls == []
    authority.cert_pem.write_to_path(str(tmp_path / "company.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "company.pem"))
    assert ask().accepted


def test_a_first_connection_imports_nothing() -> None:
    script = """
import sys, threading
from tailwatch_collectors.transport import HttpTransport
transport = HttpTransport(url="http://127.0.0.1:9", api_key=None)
before = set(sys.modules)
thread = threading.Thread(target=transport.post, args=("/x",), kwargs={"body": b"", "headers": {}, "timeout": 5.0})
thread.start()
thread.join()
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_a_service_that_hangs(service: FakeService, transport: HttpTransport) -> None:
    service.script("things", hang=True)

    answer = _post(transport, timeout=0.1)

    assert answer.status is None
    assert answer.failure is not None
    assert "Timeout" in answer.failure


def test_a_service_that_hangs_up(service: FakeService, transport: HttpTransport) -> None:
    service.script("things", lose_answer=True)

    assert _post(transport).status is None
    assert _post(transport).accepted


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"<html>proxy</html>", "text/html", "text/html"),
        (b'{"a": ', "application/json", "not JSON"),
        (b"\xff\xfe", "application/json", "not JSON"),
        (b"[" * 100_000, "application/json", "not JSON"),
        (b"[1]", "application/json", "list"),
        (b'{"a": 1}', "", "expected JSON"),
        (b"x" * (MAX_ANSWER_BYTES * 4), "application/json", "over"),
    ],
)
def test_answers_that_cannot_be_read(
    service: FakeService, transport: HttpTransport, body: bytes, content_type: str, reason: str
) -> None:
    service.script("things", body=body, content_type=content_type)

    answer = _post(transport)

    assert answer.status == 200
    assert not answer.accepted
    assert answer.failure is not None
    assert reason in answer.failure
    assert len(answer.failure) < 400
    assert _post(transport).accepted


def test_redirects_are_not_followed(service: FakeService, transport: HttpTransport) -> None:
    service.script("things", status=307, body=b"", headers={"Location": f"{service.url}/elsewhere"})

    assert _post(transport).status == 307
    assert [call.path for call in service.calls] == ["/things"]


def test_problems_are_read(service: FakeService, transport: HttpTransport) -> None:
    service.script(
        "things", status=422, body=b'{"errors": [1]}', content_type="application/problem+json; charset=utf-8"
    )

    answer = _post(transport)

    assert answer.content == {"errors": [1]}
    assert not answer.accepted


def test_retry_after_in_seconds(service: FakeService, transport: HttpTransport) -> None:
    service.script("things", status=429, headers={"Retry-After": "7"})

    assert _post(transport).retry_after == 7


@pytest.mark.parametrize(("ahead", "low", "high"), [(1000, 500, 1001), (-1000, 0, 0)])
def test_retry_after_as_a_date(
    service: FakeService, transport: HttpTransport, ahead: float, low: float, high: float
) -> None:
    date = formatdate(time.time() + ahead, usegmt=True)
    service.script("things", status=429, headers={"Retry-After": date})

    retry_after = _post(transport).retry_after

    assert retry_after is not None
    assert low <= retry_after <= high


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "²", "Mon, 99 Foo 2026"])
def test_retry_after_that_says_nothing(service: FakeService, transport: HttpTransport, value: str) -> None:
    service.script("things", status=429, headers={"Retry-After": value.encode().decode("latin-1")})

    assert _post(transport).retry_after is None


def test_the_environments_proxy_is_not_asked(
    service: FakeService, transport: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert _post(transport).accepted


def test_no_line_in_the_log_per_request(
    service: FakeService, transport: HttpTransport, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _post(transport)

    assert caplog.records == []


def test_a_service_that_drips_is_left() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n")
            with contextlib.suppress(OSError):
                while not stop.wait(0.02):
                    connection.sendall(b" ")

    dripper = threading.Thread(target=drip, daemon=True)
    dripper.start()
    transport = HttpTransport(url=f"http://127.0.0.1:{listener.getsockname()[1]}", api_key=None)
    answer = _post(transport, timeout=0.2)
    stop.set()
    transport.close()
    dripper.join(30)
    listener.close()

    assert answer.failure == "answer too slow"
