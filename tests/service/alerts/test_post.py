from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from tailwatch_service.alerts.post import DeliveryError, Reach, parse, post, refusal
from tests.service.alerts.receivers import Answer, drip, hang, megabytes, receiver, status

NEAR = Reach(allow_private=True)
FAR = Reach()


def send(url: str, *, reach: Reach = NEAR, timeout_s: float = 5.0) -> int:
    return post(url, b'{"a": 1}', headers={"Idempotency-Key": "k"}, reach=reach, timeout_s=timeout_s)


def refused(url: str, *, reach: Reach = NEAR, timeout_s: float = 5.0) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        send(url, reach=reach, timeout_s=timeout_s)
    return caught.value


def test_a_body_arrives_with_its_id() -> None:
    with receiver() as got:
        assert send(f"{got.url}/hook?x=1") == 200
    assert (got.bodies, got.paths, got.ids) == ([{"a": 1}], ["/hook?x=1"], ["k"])


@pytest.mark.parametrize(
    ("address", "far", "near"),
    [
        ("127.0.0.1", "loopback", None),
        ("::1", "loopback", None),
        ("0.0.0.0", "loopback", None),
        ("::ffff:127.0.0.1", "loopback", None),
        ("10.1.2.3", "private", None),
        ("192.168.0.1", "private", None),
        ("172.16.9.9", "private", None),
        ("100.64.0.1", "private", None),
        ("fd00:ec2::254", "private", None),
        ("64:ff9b::a00:1", "private", None),
        ("2002:0a00:0001::", "private", None),
        ("169.254.169.254", "link-local", "link-local"),
        ("::ffff:169.254.169.254", "link-local", "link-local"),
        ("64:ff9b::a9fe:a9fe", "link-local", "link-local"),
        ("fe80::1%eth0", "link-local", "link-local"),
        ("224.0.0.1", "multicast", "multicast"),
        ("93.184.216.34", None, None),
        ("2606:2800:220:1:248:1893:25c8:1946", None, None),
    ],
)
def test_where_messages_may_go(address: str, far: str | None, near: str | None) -> None:
    for reach, expected in ((FAR, far), (NEAR, near)):
        found = refusal("name", address, reach)
        assert (found is None) == (expected is None)
        assert expected is None or expected in str(found)


def test_what_is_named_is_allowed_whatever_it_resolves_to() -> None:
    assert refusal("alertmanager", "172.18.0.4", Reach(allowed=("alertmanager",))) is None
    assert refusal("other", "172.18.0.4", Reach(allowed=("alertmanager",))) is not None
    assert refusal("other", "172.18.0.4", Reach(allowed=("172.18.0.0/16",))) is None
    assert refusal("m", "169.254.169.254", Reach(allowed=("169.254.169.254",))) is None


def test_an_address_of_this_machine_is_not_posted_to_unless_allowed() -> None:
    with receiver() as got:
        for url in (got.url, got.url.replace("127.0.0.1", "localhost"), got.url.replace("127.0.0.1", "2130706433")):
            error = refused(url, reach=FAR)
            assert error.permanent, error
            assert "TAILWATCH_ALERTS_ALLOW_PRIVATE" in str(error)
    assert got.bodies == []


def test_a_redirect_is_checked_like_the_first_address() -> None:
    metadata = "http://169.254.169.254/latest/meta-data/"
    with receiver(status(307, location=metadata)) as got:
        error = refused(got.url)
        assert error.permanent
        assert "link-local" in str(error)
    with receiver() as inner, receiver(status(308, location=inner.url + "/moved")) as outer:
        only = Reach(allowed=("localhost",))
        assert "loopback" in str(refused(outer.url.replace("127.0.0.1", "localhost"), reach=only))
        assert inner.bodies == []
        assert send(outer.url) == 200
        assert (inner.bodies, inner.paths) == ([{"a": 1}], ["/moved"])


def test_redirects_end() -> None:
    with receiver(status(307, location="/again")) as got:
        assert "redirects over 3 times" in str(refused(got.url))
    assert len(got.bodies) == 4


@pytest.mark.parametrize("code", [301, 302, 303])
def test_a_redirect_that_would_lose_the_body_is_not_followed(code: int) -> None:
    with receiver(status(code, location="http://127.0.0.1/")) as got:
        error = refused(got.url)
    assert error.permanent
    assert f"{code} to 'http://127.0.0.1/', which is not followed" in str(error)


@pytest.mark.parametrize(
    ("code", "permanent"), [(400, True), (404, True), (408, False), (429, False), (500, False), (503, False)]
)
def test_which_answers_are_worth_another_try(code: int, permanent: bool) -> None:
    with receiver(status(code, body=b"no room")) as got:
        error = refused(got.url)
    assert error.permanent == permanent
    assert f"{code}: no room" in str(error)


@pytest.mark.parametrize("answer", [hang, drip])
def test_a_receiver_that_never_ends_is_left_in_time(answer: Answer) -> None:
    with receiver(answer) as got:
        started = time.monotonic()
        error = refused(got.url, timeout_s=0.5)
        assert time.monotonic() - started < 5.0
    assert not error.permanent
    assert "in time" in str(error)


def test_megabytes_are_not_read() -> None:
    with receiver(megabytes) as got:
        assert send(got.url) == 200


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert not refused(f"http://127.0.0.1:{port}/").permanent


def test_what_answers_is_not_http() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def babble() -> None:
        connection, _ = listener.accept()
        connection.sendall(b"SSH-2.0-OpenSSH\r\n")
        connection.close()

    thread = threading.Thread(target=babble, daemon=True)
    thread.start()
    assert not refused(f"http://127.0.0.1:{listener.getsockname()[1]}/").permanent
    thread.join(5.0)
    listener.close()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/",
        "file:///etc/passwd",
        "gopher://a",
        "http://",
        "//a/",
        "http://u:p@a/",
        "http://a:99999/",
        "",
        "http://[::1",
    ],
)
def test_what_is_no_address_to_post_to(url: str) -> None:
    with pytest.raises(DeliveryError) as caught:
        parse(url)
    assert caught.value.permanent


def test_one_bad_address_among_good_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, 1, 6, "", (a, 80)) for a in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert "private" in str(refused("http://rebinding.example/", reach=FAR))
