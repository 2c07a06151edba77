from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.types import Message

from tailwatch_service import body
from tailwatch_service.errors import BadRequest, TooLarge, Unprocessable

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.compress, "identity": bytes}


def request(*pieces: bytes, disconnect: bool = False, **headers: str) -> Request:
    left = list(pieces)

    async def receive() -> Message:
        if disconnect and not left:
            return {"type": "http.disconnect"}
        piece = left.pop(0) if left else b""
        return {"type": "http.request", "body": piece, "more_body": bool(left) or disconnect}

    named = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": named}, receive)


@given(parts=st.lists(st.binary(max_size=20_000), min_size=1, max_size=4), encoding=st.sampled_from(sorted(PACK)))
def test_what_was_packed_is_unpacked_in_any_number_of_frames(parts: list[bytes], encoding: str) -> None:
    packed = b"".join(PACK[encoding](part) for part in parts)
    plain = b"".join(parts)

    assert body.decompress(packed, encoding=encoding, limit=len(plain) + 1) == plain
    if plain:
        with pytest.raises(TooLarge, match=f"{len(plain) - 1} bytes|limit {len(plain) - 1}"):
            body.decompress(packed, encoding=encoding, limit=len(plain) - 1)


@given(data=st.binary(min_size=1, max_size=5000), encoding=st.sampled_from(["gzip", "zstd"]), where=st.floats(0, 0.99))
def test_what_was_cut_off_is_never_taken_for_whole(data: bytes, encoding: str, where: float) -> None:
    packed = PACK[encoding](data)
    cut = packed[: int(len(packed) * where)]
    if cut:
        with pytest.raises(BadRequest, match=encoding):
            body.decompress(cut, encoding=encoding, limit=10**6)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_never_held(encoding: str) -> None:
    size = 400_000_000
    bomb = gzip.compress(b"\0" * size, 1) if encoding == "gzip" else zstandard.compress(b"\0" * size)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            body.decompress(bomb, encoding=encoding, limit=1_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 200_000_000


@pytest.mark.asyncio
async def test_a_body_is_read_to_its_end() -> None:
    assert await body.read(request(b"ab", b"", b"c"), limit=3) == b"abc"
    assert await body.read(request(b"abc", Content_Length="3"), limit=3) == b"abc"


@pytest.mark.asyncio
async def test_a_client_that_leaves_leaves_nothing() -> None:
    with pytest.raises(BadRequest, match="cut off after 2 bytes"):
        await body.read(request(b"ab", disconnect=True), limit=10)
    with pytest.raises(TooLarge):
        await body.read(request(b"abc", disconnect=True), limit=1)


@pytest.mark.asyncio
async def test_a_client_that_asks_first_is_refused_at_once() -> None:
    async def never() -> Message:
        raise AssertionError("the body was asked for")

    asking = request(Content_Length="100", Expect="100-continue")
    asking._receive = never  # what a server would answer with 100 Continue

    with pytest.raises(TooLarge, match="100 bytes, limit 10"):
        await body.read(asking, limit=10)


class Small(BaseModel):
    a: int
    b: dict[str, int] = {}


def test_findings_name_the_path_and_the_value() -> None:
    with pytest.raises(Unprocessable) as caught:
        body.checked(Small, {"a": "x", "b": {"c": "y"}})

    found = {error.column: error.reason for error in caught.value.errors}
    assert set(found) == {"a", "b.c"}
    assert "'x'" in found["a"]
