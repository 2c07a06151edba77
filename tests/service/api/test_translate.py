"""The translate endpoints: a line in our names, the keys of a tool, limits and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tailwatch_service.api.translate import MAX_KEYS
from tailwatch_service.statistics.aliases import TOOLS
from tests.service.support import API, Start, problem

pytestmark = pytest.mark.asyncio

ADDRESS = f"{API}/translate"


async def test_a_line_in_our_names(start: Start) -> None:
    async with start() as live:
        body = {
            "from": "nemo-rl",
            "step": 7,
            "metrics": {"train/gen_kl_error": 1e-3, "train/policy_kl_error": 0.5, "train/loss": 1.0, "note": "x"},
        }
        answer = await live.client.post(ADDRESS, json=body)
        assert answer.status_code == 200
        found = answer.json()
        assert (found["tool"], found["step"]) == ("NeMo-RL", 7)
        assert found["metrics"] == {"kl_k3": 1e-3, "kl_unweighted_reverse_k3": 0.5}
        assert [(row["key"], row["exact"]) for row in found["mapped"]] == [
            ("train/gen_kl_error", True),
            ("train/policy_kl_error", True),
        ]
        assert "which it is not" in found["mapped"][1]["note"]
        reasons = {row["key"]: row["reason"] for row in found["unmapped"]}
        assert reasons["note"] == "'x' is not a number"
        assert set(reasons) == {"train/loss", "note"}


async def test_an_empty_line(start: Start) -> None:
    async with start() as live:
        found = (await live.client.post(ADDRESS, json={"from": "verl", "metrics": {}})).json()
        assert (found["metrics"], found["mapped"], found["unmapped"], found["step"]) == ({}, [], [], None)


async def test_the_keys_of_a_tool_and_the_tools(start: Start) -> None:
    async with start() as live:
        found = (await live.client.get(ADDRESS, params={"from": "MS-Swift"})).json()
        assert (found["tool"], found["version"]) == ("ms-swift", "4.6.0")
        rows = {row["key"]: row for row in found["keys"]}
        assert rows["rollout_correction/chi2_seq"]["metric"] is None
        assert "geometric" in rows["rollout_correction/chi2_seq"]["differs"]
        registry = (await live.client.get(f"{API}/registry")).json()
        assert [tool["id"] for tool in registry["tools"]] == list(TOOLS)
        (k3,) = [metric for metric in registry["metrics"] if metric["name"] == "kl_k3"]
        assert k3["aliases"]["verl"] == "rollout_corr/k3_kl"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"from": "verk", "metrics": {}}, 422, "not one of verl, trl"),
        ({"metrics": {}}, 422, "from"),
        ({"from": "", "metrics": {}}, 422, "from"),
        ({"from": 3, "metrics": {}}, 422, "from"),
        ({"from": "verl"}, 422, "metrics"),
        ({"from": "verl", "metrics": [1]}, 422, "metrics"),
        ({"from": "verl", "metrics": {}, "step": -1}, 422, "step"),
        ({"from": "verl", "metrics": {}, "steps": 1}, 422, "steps"),
        ({"from": "verl", "metrics": {"x" * 513: 1.0}}, 422, "512"),
        ({"from": "verl", "metrics": {str(n): 1 for n in range(MAX_KEYS + 1)}}, 422, "10000"),
        ({"from": "verl", "metrics": {"x": "y" * 2**20}}, 413, "1048576"),
    ],
)
async def test_refusals(start: Start, body: Any, status: int, words: str) -> None:
    async with start() as live:
        problem(await live.client.post(ADDRESS, json=body), status, words)


async def test_what_is_no_json_and_what_is_no_name(start: Start) -> None:
    async with start() as live:
        for text in ("{", json.dumps({"from": "verl", "metrics": {"rollout_corr/kl": float("nan")}}), ""):
            answer = await live.client.post(ADDRESS, content=text, headers={"content-type": "application/json"})
            assert answer.status_code in {400, 422}, answer.text
        problem(await live.client.get(ADDRESS), 422, "from")
        problem(await live.client.get(ADDRESS, params={"from": "verk"}), 422, "not one of")
