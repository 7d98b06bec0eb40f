"""A dev group in this process: its keeper, chaos from the page, and what a new user sees in a browser."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from dledger.dashboard.history import Event
from dledger.dev.session import DevOptions, DevSession
from dledger.errors import UnavailableError, UnexpectedArgumentError, UnknownMemberError

pytest.importorskip("uvicorn", reason="skipped: no uvicorn; pip install 'dledger[ui]'")
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def session(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DevSession]:
    options = DevOptions(directory=tmp_path_factory.mktemp("dev"), load=50, page_port=0)
    async with DevSession(options, lambda text: None) as found:
        yield found
    assert all(node.pid is None for node in found.group.nodes.values())


async def told(session: DevSession, words: Callable[[Event], bool], after: int = 0, timeout: float = 30) -> Event:
    """Wait for an event."""
    async with asyncio.timeout(timeout):
        while True:
            for event in session.watcher.history.events_after(after):
                if words(event):
                    return event
            await anext(aiter(session.watcher.updates()))


def newest(session: DevSession) -> int:
    return session.watcher.history.events[-1].number if session.watcher.history.events else 0


async def test_signals_of_others_are_noticed(session: DevSession) -> None:
    after = newest(session)
    node = session.group.node("n1")
    node.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
    await told(session, lambda event: "n1 is paused (SIGSTOP)" in event.text, after)
    assert session.keeper.conditions()["n1"].state == "paused"
    assert await session.keeper.act("heal", "", "") == "n1 goes on"
    await told(session, lambda event: "n1 goes on after the pause" in event.text, after)
    node.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    event = await told(session, lambda event: event.text.startswith("n1 ended with exit code 0"), after)
    assert event.kind == "fault"
    assert await session.keeper.act("resume", "n1", "") == "started n1 again"
    await told(session, lambda event: "n1 answers again" in event.text, after)


async def test_what_makes_no_sense_is_refused(session: DevSession) -> None:
    with pytest.raises(UnexpectedArgumentError, match='"dance" is no action; there are append'):
        await session.keeper.act("dance", "", "")
    with pytest.raises(UnknownMemberError, match='"n7" is no node'):
        await session.keeper.act("kill", "n7", "")
    with pytest.raises(UnexpectedArgumentError, match="bytes; the page takes"):
        await session.keeper.act("append", "", "x" * 5000)
    assert await session.keeper.act("resume", "n0", "") == "n0 was running"


async def test_leadership_goes_where_it_is_sent(session: DevSession) -> None:
    leader = await session.group.wait_leader()
    target = next(node_id for node_id in session.group.nodes if node_id != leader)
    assert await session.keeper.act("transfer", target, "") == f"{target} leads now"
    assert await session.group.wait_leader(other_than=leader) == target


async def test_two_cut_nodes_are_connected_one_by_one(session: DevSession) -> None:
    await session.keeper.act("cut", "n0", "")
    await session.keeper.act("cut", "n1", "")
    await session.keeper.act("heal", "n0", "")
    assert session.group.fabric.cut_flows() == {("n0", "n1"), ("n1", "n0"), ("n1", "n2"), ("n2", "n1")}
    assert session.keeper.conditions()["n1"].cut and not session.keeper.conditions()["n0"].cut
    await session.keeper.act("heal", "", "")
    assert not session.group.fabric.cut_flows()
    await session.group.wait_leader()


async def chaos(session: DevSession) -> Event:
    """Run four seconds of chaos to their end; return the event that says how it ended."""
    after = newest(session)
    assert (await session.keeper.act("chaos", "", "4")).startswith("4 s of chaos, seed ")
    with pytest.raises(UnavailableError, match="chaos is running"):
        await session.keeper.act("kill", "n0", "")
    verdict = await told(
        session, lambda event: event.text.startswith(("PASS", "FAIL", "chaos ended early")), after, timeout=100
    )
    async with asyncio.timeout(20):
        while session.keeper.chaos_running:
            await anext(aiter(session.watcher.updates()))
    return verdict


async def test_chaos_ends_with_a_verdict_and_a_report(session: DevSession) -> None:
    after = newest(session)
    assert session.keeper.report() is None
    verdict = await chaos(session)
    assert verdict.text.startswith("PASS ") and " 0 lost" in verdict.text
    assert int(verdict.text.split()[1]) > 0
    page = session.keeper.report()
    assert page is not None and b'class="verdict pass"' in page
    kinds = {event.text for event in session.watcher.history.events_after(after)}
    assert "healed; kill -9 and restart of every node" in kinds
    assert await session.keeper.act("append", "", "after the chaos")


async def test_a_new_user_kills_the_leader_and_sees_the_election(session: DevSession, tmp_path: Path) -> None:
    pytest.importorskip("playwright.async_api", reason="skipped: no playwright; pip install 'dledger[browser]'")
    from tests.dashboard import test_page as pages

    if pages.CHROMIUM is None:
        pytest.skip("skipped: no Chromium")
    if session.keeper.report() is None:  # this test alone
        await chaos(session)
    await session.group.wait_leader()
    async with pages.playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=pages.CHROMIUM, args=["--no-sandbox"])
        async with pages.opened(browser, session.state.page, token=session.keeper.token) as page:
            await page.words("3 of 3 up, tolerates 1 failure")
            await page.until("() => document.querySelectorAll('#ring .node.leader').length === 1")
            leader = await page.text("#table tr.leads td")
            await page.page.click("[data-act=kill]")
            await page.until("() => document.getElementById('outcome').textContent.startsWith('killed n')")
            await page.words("2 of 3 up, tolerates no more failures")
            await page.until("old => document.querySelector('tr.leads td')?.textContent !== old", leader)
            events = await page.text("#events")
            assert f"{leader} was killed with SIGKILL" in events
            assert "was elected leader of term" in events
            await page.page.click("[data-act=heal]")
            await page.words("3 of 3 up, tolerates 1 failure")
            # The report of a chaos run opens, and its policy lets its own script run and nothing else.
            await page.page.goto(f"{session.state.page}report")
            await page.until("() => document.documentElement.outerHTML.includes('data-ready')")
        await browser.close()
