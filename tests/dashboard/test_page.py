"""The page in a real browser, before nodes that say what the test tells them to."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dledger.dashboard.history import Point
from dledger.dashboard.watcher import Condition
from dledger.types import LogRun
from tests.dashboard.stage import Stage, event, leading, status, watching

playwright_api = pytest.importorskip(
    "playwright.async_api", reason="skipped: no playwright; pip install 'dledger[browser]'"
)
pytest.importorskip("uvicorn", reason="skipped: no uvicorn; pip install 'dledger[ui]'")

from tests.dashboard.test_server import Actor, serving, serving_watcher  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="skipped: no Chromium"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Any]:
    async with playwright_api.async_playwright() as playwright:
        found = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        await found.close()


class Page:
    """One open page, what its console said and where it sent requests."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    async def text(self, selector: str) -> str:
        return str(await self.page.inner_text(selector))

    async def until(self, expression: str, what: object = None) -> None:
        """Wait until an expression over the page is true."""
        await self.page.wait_for_function(expression, arg=what, timeout=10_000)

    async def words(self, words: str) -> None:
        await self.until("want => document.getElementById('words').textContent.includes(want)", words)


@contextlib.asynccontextmanager
async def opened(
    browser: Any, url: str, *, width: int = 1200, token: str = "", quiet: bool = True, **options: Any
) -> AsyncIterator[Page]:
    context = await browser.new_context(viewport={"width": width, "height": 900}, **options)
    try:
        page = Page(await context.new_page())
        await page.page.goto(url + (f"#token={token}" if token else ""))
        await page.until("() => document.querySelector('#table tr:nth-child(2)')")
        yield page
        if quiet:
            assert page.complaints == []
        assert {request.partition("/events")[0] for request in page.requests if not request.startswith(url)} <= {
            url.rstrip("/")
        }
    finally:
        await context.close()


async def test_all_is_well(browser: Any) -> None:
    async with serving(Stage()) as server, opened(browser, server.url) as page:
        assert await page.text("#words") == "3 of 3 up, tolerates 1 failure"
        leader = await page.text("#leader")
        assert "n0 leads term 3, for 3" in leader and "100 entries committed" in leader
        labels = await page.page.eval_on_selector_all(
            "#ring .node", "all => all.map(n => n.getAttribute('aria-label'))"
        )
        assert labels == ["n0, leader, term 3", "n1, follower, term 3", "n2, follower, term 3"]
        assert await page.page.locator("#ring .node.leader").count() == 1
        assert await page.page.locator("#strip .cell").count() == 180
        assert await page.page.locator("#strip .cell.open").count() == 0
        assert await page.text("#strip-terms") == "term 2\nterm 3"
        assert not await page.page.is_visible("#controls"), "nobody here may press a button"
        rows = await page.page.eval_on_selector_all("#table tr", "all => all.map(r => r.innerText)")
        assert len(rows) == 4 and "leader" in rows[1]
        await page.until("() => document.querySelectorAll('#charts .line').length >= 9")


async def test_one_node_down_then_two_then_none(browser: Any) -> None:
    stage = Stage()
    async with serving(stage) as server, opened(browser, server.url) as page:
        stage.nodes["n2"] = "connection refused"
        await page.words("2 of 3 up, tolerates no more failures")
        await page.until("() => document.querySelector('#ring .node.gone')")
        assert "connection refused" in await page.text("#table tr.down")
        assert await page.page.locator("#strip .cell.past").count() == 60, "its log as it last was"
        await page.until("() => document.querySelectorAll('#charts .shade.down').length === 4")
        stage.nodes["n0"] = "connection refused"
        await page.words("1 of 3 up: no majority")
        assert "no leader" in await page.text("#leader")
        assert await page.page.get_attribute("#health", "class") == "dot lost"
        assert "n0 does not answer" in await page.text("#events")
        stage.nodes["n0"], stage.nodes["n2"] = leading(), status("n2")
        await page.words("3 of 3 up, tolerates 1 failure")


async def test_no_leader(browser: Any) -> None:
    stage = Stage()
    stage.nodes["n0"] = status("n0", role="pre_candidate", leader_id="")
    async with serving(stage) as server, opened(browser, server.url) as page:
        await page.words("3 of 3 up, nobody leads: an election is under way")
        assert await page.page.locator("#ring .node.candidate").count() == 1
        assert "asks for votes" in await page.text("#table")


async def test_uncommitted_entries_are_hollow_and_what_is_cut_flashes(browser: Any) -> None:
    stage = Stage()
    stage.change("n1", last_index=97, commit_index=95)
    async with serving(stage) as server, opened(browser, server.url) as page:
        await page.until("() => document.querySelectorAll('#strip .cell.open').length === 2")
        before = await page.page.get_attribute("#strip .commit", "d")
        stage.change("n1", events=(event(1, "voted", candidate="n0", term="3"),))
        await page.until("() => document.getElementById('events').innerText.includes('n1 voted for n0')")
        stage.change(
            "n1",
            tail=(LogRun(36, 2), LogRun(96, 3)),
            events=(event(1, "voted", candidate="n0", term="3"), event(2, "truncated", from_index="96", entries="2")),
        )
        await page.until("() => document.querySelectorAll('#strip .cell.flash').length === 2")
        assert "n1 cut 2 entries that had not been committed, from index 96 on" in await page.text("#events")
        await page.until("() => document.querySelectorAll('#strip .cell.flash').length === 0")
        stage.change("n1", last_index=99, commit_index=99)
        await page.until("before => document.querySelector('#strip .commit').getAttribute('d') !== before", before)


async def test_messages_are_in_motion_and_a_cut_is_seen(browser: Any) -> None:
    stage = Stage()
    count = 0

    def send() -> None:
        nonlocal count
        count += 20
        found = stage.nodes["n0"]
        stage.nodes["n0"] = leading(peers=tuple(_sent(peer, count) for peer in found.peers))  # type: ignore[union-attr]

    async def keep_sending() -> None:
        while True:
            send()
            await asyncio.sleep(0.1)

    task = asyncio.ensure_future(keep_sending())
    try:
        async with serving(stage) as server:
            async with opened(browser, server.url) as page:
                await page.until("() => document.querySelectorAll('#ring circle.k-entries').length > 2")
                stage.conditions = {"n2": Condition(cut=True)}
                await page.until("() => document.querySelectorAll('#ring .link.broken').length === 2")
                assert "follower, cut off" in await page.text("#table")
            async with opened(browser, server.url, reduced_motion="reduce") as page:
                await page.until("() => /\\/s/.test(document.querySelector('#ring .link-rate').textContent)")
                assert await page.page.locator("#ring circle.k-entries").count() == 0
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _sent(peer: Any, count: int) -> Any:
    import dataclasses

    return dataclasses.replace(peer, sent={"AppendEntries": count})


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_five_nodes_on_a_narrow_screen(browser: Any, scheme: str) -> None:
    stage = Stage(5)
    async with (
        serving(stage, Actor()) as server,
        opened(browser, server.url, width=320, token="right-token", color_scheme=scheme) as page,
    ):
        assert await page.text("#words") == "5 of 5 up, tolerates 2 failures"
        width = await page.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 320, "nothing sticks out; the table scrolls by itself"
        assert await page.page.locator("#strip .cell").count() == 5 * 30
        boxes = await page.page.eval_on_selector_all(
            "#ring .node .body", "all => all.map(n => n.getBoundingClientRect()).map(b => [b.left, b.right])"
        )
        assert all(left >= 0 and right <= 320 for left, right in boxes)
        assert await contrast(page, "#words") >= 7
        for selector in ("#leader", "#table td", "#events", ".hurt", "#charts .now"):
            assert await contrast(page, selector) >= 4.5, selector
        theme = await page.page.evaluate("getComputedStyle(document.body).backgroundColor")
        await page.page.click("#theme")
        assert await page.page.evaluate("getComputedStyle(document.body).backgroundColor") != theme


CONTRAST = """selector => {
  const light = (c) => { const v = c / 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const sum = (rgb) => 0.2126 * light(rgb[0]) + 0.7152 * light(rgb[1]) + 0.0722 * light(rgb[2]);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  let element = document.querySelector(selector), behind = element, ink = parse(getComputedStyle(element).color);
  let ground = parse(getComputedStyle(behind).backgroundColor);
  while (ground.length === 4 && ground[3] === 0) {
    behind = behind.parentElement; ground = parse(getComputedStyle(behind).backgroundColor);
  }
  const [a, b] = [sum(ink), sum(ground)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


async def contrast(page: Page, selector: str) -> float:
    """WCAG's contrast ratio of an element's text."""
    return float(await page.page.evaluate(CONTRAST, selector))


async def test_the_keyboard_does_everything(browser: Any) -> None:
    actor = Actor()
    async with serving(Stage(), actor) as server, opened(browser, server.url, token="right-token") as page:
        keyboard = page.page.keyboard
        await keyboard.press("k")
        await page.until("() => document.getElementById('outcome').textContent === 'kill done'")
        await keyboard.press("h")
        await page.until("() => document.getElementById('outcome').textContent === 'heal done'")
        assert actor.done == [("kill", "leader", ""), ("heal", "", "")]
        await keyboard.press("Space")
        assert await page.page.is_visible("#paused")
        await keyboard.press("Space")
        assert not await page.page.is_visible("#paused")
        await keyboard.press("?")
        assert await page.page.is_visible("#help")
        await keyboard.press("k")  # a dialog is open: no key of the page's
        await keyboard.press("Escape")
        assert not await page.page.is_visible("#help")
        await page.page.focus("#text")
        await keyboard.type("kick")  # letters are letters in a field
        await keyboard.press("Enter")
        await page.until("() => document.getElementById('outcome').textContent === 'append done'")
        assert actor.done[2:] == [("append", "", "kick")]
        # Everything that can be pressed can be reached by Tab, and is seen to have the focus.
        reached = set()
        await page.page.focus("body")
        for _ in range(40):
            await keyboard.press("Tab")
            reached.add(
                await page.page.evaluate(
                    "document.activeElement.dataset.act || document.activeElement.id || document.activeElement.getAttribute('class')"
                )
            )
        assert {"kill", "pause", "cut", "heal", "chaos", "transfer", "resume", "text", "target", "filter"} <= reached
        assert any("node" in str(item) for item in reached)
        await page.page.focus("[data-act=kill]")
        assert await page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


async def test_a_node_that_is_clicked_is_the_target(browser: Any) -> None:
    actor = Actor()
    async with serving(Stage(), actor) as server, opened(browser, server.url, token="right-token") as page:
        box = await page.page.locator("#ring .node .body").nth(2).bounding_box()
        # By place: the button that the circle belongs to has its timer's arc round it, and is never at rest.
        await page.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert await page.page.input_value("#target") == "n2"
        await page.page.click("[data-act=pause]")
        await page.until("() => document.getElementById('outcome').textContent === 'pause done'")
        assert actor.done == [("pause", "n2", "")]


async def test_a_wrong_token_is_said(browser: Any) -> None:
    async with serving(Stage(), Actor()) as server, opened(browser, server.url, token="wrong", quiet=False) as page:
        await page.page.click("[data-act=heal]")
        await page.until("() => document.getElementById('outcome').className === 'failed'")
        assert "token is wrong" in await page.text("#outcome")


async def test_text_from_elsewhere_stays_text(browser: Any) -> None:
    stage = Stage()
    evil = "<img src=x onerror=document.title='pwned'>"
    stage.change("n1", note=evil, events=(event(1, evil),))
    async with serving(stage) as server, opened(browser, server.url) as page:
        await page.until("() => document.getElementById('table').innerText.includes('<img')")
        assert "<img" in await page.text("#events")
        assert await page.page.locator("main img").count() == 0
        assert await page.page.title() == "● stage n0"


async def test_events_are_filtered_and_lead_into_the_charts(browser: Any) -> None:
    stage = Stage()
    stage.change("n1", events=(event(1, "voted", candidate="n0", term="3"), event(2, "term_raised", term="3", by="n0")))
    async with serving(stage) as server, opened(browser, server.url) as page:
        await page.until("() => document.getElementById('events').innerText.includes('voted')")
        assert "heard of term" not in await page.text("#events")
        await page.page.check("#minor")
        assert "n1 heard of term 3 from n0" in await page.text("#events")
        await page.page.fill("#filter", "VOTED")
        assert await page.page.locator("#events li").count() == 1
        await page.page.click("#events button")
        assert await page.page.get_attribute("#charts .mark", "opacity") == "1"


async def test_the_page_connects_again_by_itself(browser: Any, tmp_path: Path) -> None:
    stage = Stage()
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(stage))
        port = int(server.url.rstrip("/").rpartition(":")[2])
        page = await stack.enter_async_context(opened(browser, server.url, quiet=False))
        await page.until("() => document.getElementById('connection').textContent === 'live'")
        async with contextlib.AsyncExitStack() as first:
            first.push_async_callback(server.stop)
        await page.until("() => document.getElementById('connection').className.includes('stale')")
        stage.nodes["n2"] = "connection refused"
        async with serving(stage, port=port):
            await page.until("() => document.getElementById('connection').textContent === 'live'")
            await page.words("2 of 3 up")


BROKER = {
    "words": "3 brokers registered; 1 topics; master (BID 0): dev at 127.0.0.1:30911",
    "brokers": [
        {"name": "dev", "id": 0, "address": "127.0.0.1:30911", "up": True, "note": "", "in_rate": 12.5, "out_rate": 0},
        {
            "name": "dev",
            "id": 2,
            "address": "127.0.0.1:30912",
            "up": False,
            "note": "gone",
            "in_rate": 0,
            "out_rate": 0,
        },
    ],
    "queues": [{"topic": "T", "broker": "dev", "queue": 0, "min": 0, "max": 1234, "rate": None}],
    "consumers": [{"group": "G", "topic": "T", "broker": "dev", "queue": 0, "offset": 1200, "lag": 34}],
}


async def test_the_broker_tab(browser: Any) -> None:
    stage = Stage()
    made = stage.watcher

    def with_broker(named: bool = True) -> Any:
        watcher = made(named)
        watcher.extra["broker"] = BROKER
        return watcher

    stage.watcher = with_broker  # type: ignore[method-assign]
    async with serving(stage) as server, opened(browser, server.url) as page:
        await page.until("() => !document.getElementById('tabs').hidden")
        await page.page.keyboard.press("2")
        assert await page.page.is_visible("#view-broker") and not await page.page.is_visible("#view-group")
        assert "master" in await page.text("#brokers tr.leads")
        assert "gone" in await page.text("#brokers tr.down")
        assert (await page.text("#queues tr:nth-child(2)")).replace("\u202f", " ").split("\t")[4] == "1 234"
        assert (await page.text("#consumers tr:nth-child(2)")).split("\t")[-1] == "34"
        await page.page.click("#tab-group")
        assert await page.page.is_visible("#ring")


async def test_chaos_counts_down_and_its_verdict_stands_there_in_the_end(browser: Any) -> None:
    stage = Stage()
    async with (
        watching(stage) as watcher,
        serving_watcher(watcher, Actor()) as server,
        opened(browser, server.url, token="right-token") as page,
    ):
        assert await page.text("#chaos") == "30 s of chaos"
        watcher.extra |= {"chaos": True, "chaos_left_s": 17, "verdict": ""}
        await page.until("() => document.getElementById('chaos').textContent === '17 s of chaos left'")
        assert await page.page.is_disabled("[data-act=kill]")
        watcher.extra |= {"chaos_left_s": 0}
        await page.until("() => document.getElementById('chaos').textContent.startsWith('healing')")
        watcher.extra |= {"chaos": False, "verdict": "FAIL 100 acknowledged, 1 lost", "report": True}
        await page.until("() => document.getElementById('outcome').textContent.startsWith('FAIL 100')")
        assert await page.page.get_attribute("#outcome", "class") == "failed"
        assert await page.text("#chaos") == "30 s of chaos"
        assert await page.page.is_enabled("[data-act=kill]") and await page.page.is_visible("#report")


async def test_a_page_that_nobody_sees_asks_for_nothing(browser: Any) -> None:
    stage = Stage()
    hide = (
        "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true }); "
        "document.dispatchEvent(new Event('visibilitychange')); }"
    )
    async with watching(stage) as watcher, serving_watcher(watcher) as server, opened(browser, server.url) as page:
        await page.words("3 of 3 up")
        await page.page.evaluate(hide, True)
        await eventually(lambda: watcher._followers == 0)
        stage.nodes["n2"] = "connection refused"
        await eventually(lambda: "n2 does not answer" in [event.text for event in watcher.history.events])
        assert "3 of 3 up" in await page.text("#words")
        await page.page.evaluate(hide, False)
        await page.words("2 of 3 up")
        assert "n2 does not answer" in await page.text("#events"), "what it missed is there"


@pytest.mark.parametrize(("age_s", "label"), [(0, "1 min ago"), (170, "3 min ago"), (250, "5 min ago")])
async def test_charts_show_as_much_time_as_there_is(browser: Any, age_s: int, label: str) -> None:
    async with watching(Stage()) as watcher, serving_watcher(watcher) as server:
        watcher.history.points.appendleft(Point(time.time() - age_s, 5.0, None, None, {}, {}))
        async with opened(browser, server.url) as page:
            await page.until("want => document.querySelector('#charts svg').textContent.includes(want)", label)


async def eventually(condition: Callable[[], bool]) -> None:
    """Poll state that signals nothing until it is true."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for signals nothing
            await asyncio.sleep(0.02)
