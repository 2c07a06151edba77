"""Routes of the pages: what they show of a real run, who may see them, and how they are sent."""

from __future__ import annotations

import numpy as np
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_dashboards import plotlyjs
from tailwatch_service.statistics.registry import HEADLINE
from tailwatch_service.storage import keys
from tests.service.support import API, Live, Start, problem

pytestmark = pytest.mark.asyncio


async def run_with_steps(live: Live, steps: int = 3) -> str:
    run = await live.run("grpo-7b", project="math", precision="bf16")
    for step in range(steps):
        await live.send(run, step=step, seed=step)
        await live.closed(run, step)
    return run


async def test_the_list_shows_a_run_and_updates_from_its_view(start: Start) -> None:
    async with start() as live:
        empty = await live.client.get("/")
        assert "No runs yet" in empty.text
        run = await run_with_steps(live)

        page = await live.client.get("/")
        view = (await live.client.get("/view")).json()

        assert page.status_code == 200
        assert f'href="/runs/{run}"' in page.text
        assert view["count"] == 1
        assert view["next_cursor"] is None
        assert "grpo-7b" in view["sections"]["rows"]


async def test_a_search_finds_by_name_state_and_project(start: Start) -> None:
    async with start() as live:
        await live.run("alpha", project="math")
        await live.run("beta", project="code")
        for query, count in (("alph", 1), ("CODE", 1), ("no data", 2), ("alpha code", 0)):
            assert (await live.client.get("/view", params={"q": query})).json()["count"] == count


async def test_the_list_is_paged(start: Start) -> None:
    async with start() as live:
        for index in range(53):
            await live.run(f"run-{index}")
        first = (await live.client.get("/view")).json()
        second = (await live.client.get("/view", params={"cursor": first["next_cursor"]})).json()
        assert (first["count"], second["count"], second["next_cursor"]) == (50, 3, None)


async def test_a_run_page_and_its_view_agree_with_the_api(start: Start) -> None:
    async with start() as live:
        run = await run_with_steps(live, 6)

        page = await live.client.get(f"/runs/{run}")
        view = (await live.client.get(f"/runs/{run}/view")).json()
        step = (await live.client.get(f"{API}/runs/{run}/steps/5")).json()

        assert page.status_code == 200
        assert 'data-run="' + run in page.text
        assert view["headline"]["kl_k3"] == step["metrics"]["kl_k3"]
        assert view["steps"] == [0, 1, 2, 3, 4, 5]
        assert (view["step"], view["last_step"]) == (5, 5)
        assert set(view["figures"]) == {"quantiles", "kl", "ess", "course", "envelope", "survival"}
        drawn = next(trace for trace in view["figures"]["kl"]["data"] if trace["name"] == "k3")
        assert drawn["y"][-1] == pytest.approx(step["metrics"]["kl_k3"], rel=1e-5)
        assert view["verdict"]["state"] in page.text
        assert page.text.count("95 % interval: ") == len(set(HEADLINE) & set(step["intervals"])) > 0


async def test_a_new_step_is_in_the_next_view(start: Start) -> None:
    async with start() as live:
        run = await run_with_steps(live, 2)
        assert (await live.client.get(f"/runs/{run}/view")).json()["last_step"] == 1
        await live.send(run, step=2, seed=9)
        await live.closed(run, 2)
        assert (await live.client.get(f"/runs/{run}/view")).json()["last_step"] == 2


async def test_a_step_can_be_chosen_and_a_missing_one_is_the_nearest(start: Start) -> None:
    async with start() as live:
        run = await run_with_steps(live, 4)
        for asked, shown in ((1, 1), (900, 3)):
            part = (await live.client.get(f"/runs/{run}/view", params={"step": asked, "part": "step"})).json()
            assert part["step"] == shown
            assert set(part["figures"]) == {"envelope", "survival"}
        linked = await live.client.get(f"/runs/{run}", params={"step": "1"})
        assert f"/runs/{run}/figures/envelope.csv?step=1" in linked.text
        assert (await live.client.get(f"/runs/{run}", params={"step": "latest"})).status_code == 200


async def test_themes_colour_the_figures(start: Start) -> None:
    async with start() as live:
        run = await run_with_steps(live)
        colours = set()
        for theme in ("light", "dark"):
            view = (await live.client.get(f"/runs/{run}/view", params={"theme": theme})).json()
            colours.add(view["figures"]["kl"]["data"][0]["line"]["color"])
        assert len(colours) == 2
        problem(await live.client.get(f"/runs/{run}/view", params={"theme": "neon"}), 422, "theme")


async def test_a_run_without_steps_waits(start: Start) -> None:
    async with start() as live:
        run = await live.run("new")
        assert "No steps yet" in (await live.client.get(f"/runs/{run}")).text
        view = (await live.client.get(f"/runs/{run}/view")).json()
        assert (view["step"], view["last_step"], view["steps"]) == (None, None, [])
        assert view["verdict"]["state"] == "no data"


async def test_an_unknown_run_is_a_page_with_a_search(start: Start) -> None:
    async with start() as live:
        await live.run("near")
        page = await live.client.get("/runs/<b>nope")
        assert page.status_code == 404
        assert "<b>nope" not in page.text
        assert 'name="q"' in page.text
        assert "near" in page.text
        problem(await live.client.get("/runs/nope/view"), 404)


async def test_csv_holds_the_figures_table(start: Start) -> None:
    async with start() as live:
        run = await run_with_steps(live, 3)
        answer = await live.client.get(f"/runs/{run}/figures/kl.csv")
        assert answer.headers["content-type"].startswith("text/csv")
        assert answer.text.splitlines()[0] == "step,kl_k1,kl_k3"
        assert len(answer.text.splitlines()) == 4
        bins = await live.client.get(f"/runs/{run}/figures/envelope.csv", params={"step": 1})
        assert len(bins.text.splitlines()) == 21
        problem(await live.client.get(f"/runs/{run}/figures/secrets.csv"), 404, "secrets")


async def test_pages_forbid_inline_code_and_other_origins(start: Start) -> None:
    async with start() as live:
        run = await run_with_steps(live, 1)
        for path in ("/", f"/runs/{run}", "/runs/nope", "/login", "/definitions"):
            policy = (await live.client.get(path)).headers["content-security-policy"]
            assert "unsafe" not in policy
            assert "default-src 'none'" in policy
            assert "script-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy


async def test_plotly_is_served_compressed_for_a_year(start: Start) -> None:
    async with start() as live:
        answer = await live.client.get(f"/static/plotly.min.js?v={plotlyjs.VERSION}")
        assert answer.headers["content-encoding"] == "gzip"
        assert "max-age=31536000" in answer.headers["cache-control"]
        assert answer.text.startswith("/**\n* plotly.js v")
        plain = await live.client.get("/static/plotly.min.js", headers={"accept-encoding": "identity"})
        assert plain.content == plotlyjs.script()


async def test_static_files_are_revalidated(start: Start) -> None:
    async with start() as live:
        first = await live.client.get("/static/js/run.js")
        assert first.status_code == 200
        assert first.headers["content-type"].startswith(("text/javascript", "application/javascript"))
        again = await live.client.get("/static/js/run.js", headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304
        assert (await live.client.get("/static/../pages.py")).status_code == 404


async def test_without_a_key_a_visitor_is_sent_to_sign_in(start: Start) -> None:
    async with start() as live:
        run = await live.run("private")
        secret = keys.create(live.services.db, name="k", scopes=frozenset({"read"}), now=live.services.clock())[1]
        live.services.gate.forget()
        answer = await live.client.get(f"/runs/{run}?step=3")
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/login?next=%2Fruns%2F{run}%3Fstep%3D3"
        problem(await live.client.get(f"/runs/{run}/view"), 401)
        form = await live.client.get(answer.headers["location"])
        assert "API key" in form.text
        assert (await live.client.post("/login", json={"key": secret})).status_code == 200
        assert (await live.client.get(f"/runs/{run}")).status_code == 200


async def test_the_sign_in_page_leads_only_inside(start: Start) -> None:
    async with start() as live:
        for target in ("//evil.example", "https://evil.example", "/\\evil.example"):
            page = await live.client.get("/login", params={"next": target})
            assert 'data-next="/"' in page.text


async def test_definitions_hold_the_registry(start: Start) -> None:
    async with start() as live:
        page = await live.client.get("/definitions")
        assert 'id="kl_k3"' in page.text
        assert "rollout_corr/k3_kl" in page.text


async def test_mismatch_by_lag_is_read_from_the_slices_of_the_steps(start: Start) -> None:
    async with start() as live:
        run = await live.run("lags")
        for step in range(3):
            infer = -np.random.default_rng(step).exponential(1.0, 200).astype(np.float32)
            batch = Batch.from_arrays(
                BatchMeta(step=step, world_size=1, train_version=9),
                infer_logprobs=infer,
                train_logprobs=infer * np.float32(1.01),
                cu_seqlens=np.arange(0, 201, 50),
                infer_version=np.array([9, 9, 8, 5]),
            )
            await live.send(run, batch)
            await live.closed(run, step)
        part = (await live.client.get(f"/runs/{run}/view", params={"part": "lag"})).json()
        curves = {trace["name"] for trace in part["figures"]["staleness"]["data"]}
        assert curves == {"lag 0", "lag 1", "lag 3-4"}
        assert part["steps_read"] == 3
        table = (await live.client.get(f"/runs/{run}/figures/staleness.csv")).text.splitlines()
        assert table[0] == "step,lag,tokens,kl_k3"
        assert len(table) == 1 + 3 * 3
        assert table[1].startswith("0,0,100,")


async def test_what_if_moves_with_its_bounds(start: Start) -> None:
    async with start() as live:
        run = await run_with_steps(live, 2)
        seen = []
        for upper in (1.05, 1.2):
            answer = await live.client.get(f"/runs/{run}/what-if", params={"correction": "tis_token", "upper": upper})
            seen.append(answer.json()["sections"]["whatif-result"])
            assert f"above {upper}" in seen[-1]
        assert seen[0] != seen[1]
        problem(
            await live.client.get(f"/runs/{run}/what-if", params={"correction": "tis_token", "upper": 0.5}),
            422,
            "outside",
        )
        page = (await live.client.get(f"/runs/{run}")).text
        assert page.count('name="correction"') == 12
        waiting = await live.run("waiting")
        empty = await live.client.get(f"/runs/{waiting}/what-if", params={"correction": "veto"})
        assert "no step is closed yet" in empty.text


async def test_a_sequence_opens_where_tokens_are_kept(start: Start) -> None:
    query = {"rank": 0, "part": 0, "row": 1, "position": 7}
    async with start(keep_tokens="all") as live:
        run = await run_with_steps(live, 1)
        assert "data-sequence" in (await live.client.get(f"/runs/{run}")).text
        section = (await live.client.get(f"/runs/{run}/sequence", params=query)).json()["sections"]["sequence"]
        assert section.count("<li ") == 50
        assert "positions stand in" in section
        assert 'aria-current="true"' in section
        for name, value, said in (("row", 90, "has 4 sequences"), ("rank", 5, "no batch of rank 5")):
            other = await live.client.get(f"/runs/{run}/sequence", params=query | {name: value})
            assert said in other.json()["sections"]["sequence"]


async def test_without_kept_tokens_the_page_says_how_to_keep_them(start: Start) -> None:
    async with start() as live:
        run = await run_with_steps(live, 1)
        query = {"rank": 0, "part": 0, "row": 0}
        answer = await live.client.get(f"/runs/{run}/sequence", params=query)
        assert "--keep-tokens all" in answer.json()["sections"]["sequence"]
        problem(await live.client.get("/runs/nope/sequence", params=query), 404)


async def test_an_alert_is_on_the_page_and_its_acknowledgement_too(start: Start) -> None:
    async with start() as live:
        run = await live.run("invalid")
        infer = np.full(200, -1.0, np.float32)
        infer[:40] = np.nan
        train = np.full(200, -1.1, np.float32)
        for step in range(4):
            batch = Batch.from_arrays(
                BatchMeta(step=step, world_size=1),
                infer_logprobs=infer,
                train_logprobs=train,
                cu_seqlens=np.arange(0, 201, 50),
            )
            await live.send(run, batch)
            await live.closed(run, step)
        cards = (await live.client.get(f"{API}/runs/{run}/alerts")).json()["alerts"]
        card = next(one for one in cards if one["rule"] == "LogprobInvalid")
        section = (await live.client.get(f"/runs/{run}/view")).json()["sections"]["alerts"]
        assert "LogprobInvalid" in section
        assert f'data-act="ack" data-alert="{card["alert_id"]}"' in section
        assert (await live.client.post(f"{API}/alerts/{card['alert_id']}/ack", json={})).status_code == 200
        after = (await live.client.get(f"/runs/{run}/view")).json()["sections"]
        assert "acknowledged" in after["alerts"]
        assert f'data-act="ack" data-alert="{card["alert_id"]}"' not in after["alerts"]
        assert after["alerts"].count('data-act="ack"') == len(cards) - 1
        assert f'href="#alerts">{len(cards)}<' in after["verdict"]
