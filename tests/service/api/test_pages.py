"""Routes of the pages: what they show of a real run, who may see them, and how they are sent."""

from __future__ import annotations

import pytest

from tailwatch_dashboards import plotlyjs
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
        assert set(view["figures"]) == {"quantiles", "kl", "envelope", "survival"}
        drawn = next(trace for trace in view["figures"]["kl"]["data"] if trace["name"] == "k3")
        assert drawn["y"][-1] == pytest.approx(step["metrics"]["kl_k3"], rel=1e-5)
        assert view["verdict"]["state"] in page.text


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
