"""The HTML report: complete, self-contained, and fine in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dledger.chaos.judge import judge_record
from dledger.chaos.report import render
from dledger.chaos.svg import Scale, decades, dots, ticks
from tests.chaos.records import good_record

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def page(spoil: bool = False) -> str:
    record = good_record()
    record.meta["settings"] = {"note": "</script><b>not bold</b>"}
    record.faults[0].words += " <i>&</i>"
    if spoil:
        record.log[25] = None
        record.log[-1] = "v3"
    return render(record, judge_record(record))


class Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids.update(value for name, value in attrs if name == "id" and value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


def test_the_page_is_whole_and_needs_no_network() -> None:
    text = page()
    parser = Balance()
    parser.feed(text)
    assert not parser.open
    assert {
        "verdict",
        "throughput",
        "latency",
        "lanes",
        "operations",
        "losses",
        "configuration",
        "history",
    } <= parser.ids
    visible = re.sub(r'<script type="application/octet-stream".*?</script>', "", text, flags=re.S)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", visible)
    assert "<i>" not in visible and "<b>not bold" not in visible
    assert 'class="verdict pass"' in text


def test_a_failed_run_shows_its_offences_as_crosses() -> None:
    text = page(spoil=True)
    assert 'class="verdict fail"' in text
    assert text.count(' cross"') == 2
    assert "LOST: append &#x27;v27&#x27;" in text
    assert "DUPLICATE: append &#x27;v3&#x27;" in text


def test_every_operation_is_counted_by_its_outcome() -> None:
    text = page()
    assert "acknowledged (57)" in text
    assert "refused: definitely not in the log (1)" in text
    assert "unknown, absent from the log (1)" in text
    assert "unknown, found in the log (1)" in text
    assert sum(int(count) for count in re.findall(r'data-dots="(\d+)"', text)) == 60


def test_dots_share_a_path_and_a_place() -> None:
    drawn = dots([(1.0, 2.0), (1.1, 2.1), (5.0, 2.0)], "dot", "three & more")
    assert 'data-dots="2"' in drawn
    assert 'd="m1 2h0m4 0h0"' in drawn
    assert "three &amp; more" in drawn


def test_scales() -> None:
    assert Scale(0, 10, 100, 200)(5) == 150
    assert Scale(1, 100, 0, 100, log=True)(10) == pytest.approx(50)
    assert Scale(1, 100, 0, 100, log=True)(0) == 0
    assert ticks(60) == [0, 10, 20, 30, 40, 50, 60]
    assert ticks(0) == [0.0]
    assert decades(0.5, 1500) == [1, 10, 100, 1000]


BROKEN = "<!DOCTYPE html><html><body><script>nothing_of_that_name();</script></body></html>"


def browse(text: str, tmp_path: Path) -> tuple[str, list[str]]:
    """Return the page's DOM after its scripts have run, and what the console said."""
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
            "--virtual-time-budget=2000", "--dump-dom", path.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="skipped: no Chromium")
def test_a_browser_shows_lanes_and_dots_and_has_nothing_to_complain_of(tmp_path: Path) -> None:
    dom, console = browse(page(), tmp_path)
    assert console == []
    assert 'data-ready="4"' in dom  # the script ran to its end over all four pictures
    assert len(re.findall(r'class="lane"', dom)) >= 3
    assert sum(int(count) for count in re.findall(r'data-dots="(\d+)"', dom)) == 60
    assert len(re.findall(r'class="fault"', dom)) == 4
    assert len(re.findall(r'class="election"', dom)) >= 8


@pytest.mark.skipif(CHROMIUM is None, reason="skipped: no Chromium")
def test_the_test_above_would_see_an_error_in_the_console(tmp_path: Path) -> None:
    _, console = browse(BROKEN, tmp_path)
    assert any("nothing_of_that_name" in line for line in console)
