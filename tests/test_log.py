"""Logging: JSON off a terminal, text on one, one set-up at a time, and what other libraries say comes along."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from dledger.log import configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def test_off_a_terminal_an_event_is_one_json_line() -> None:
    out = io.StringIO()
    configure_logging(stream=out)
    log = structlog.get_logger().bind(group_id="g", node_id="n0")
    log.info("became_leader", term=3, note="ä")
    log.debug("hidden")
    (line,) = out.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "became_leader",
        "level": "info",
        "group_id": "g",
        "node_id": "n0",
        "term": 3,
        "note": "ä",
    }


def test_on_a_terminal_an_event_is_text() -> None:
    out = Terminal()
    configure_logging(stream=out)
    structlog.get_logger().warning("slow_disk", took_ms=7)
    assert "slow_disk" in out.getvalue()
    assert "{" not in out.getvalue()


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"), [("json", Terminal(), True), ("console", io.StringIO(), False)]
)
def test_the_format_can_be_forced(log_format, stream, is_json) -> None:
    configure_logging("info", log_format, stream)
    structlog.get_logger().info("x")
    assert stream.getvalue().startswith("{") is is_json


def test_standard_logging_comes_out_the_same_way_and_once() -> None:
    out = io.StringIO()
    configure_logging(stream=io.StringIO())
    configure_logging("warning", stream=out)
    logging.getLogger("some.library").warning("%d left", 3)
    logging.getLogger("some.library").info("hidden")
    (line,) = out.getvalue().splitlines()
    event = json.loads(line)
    assert (event["event"], event["library"], event["level"]) == ("3 left", "some.library", "warning")


def test_an_exception_is_told_without_the_values_of_variables() -> None:
    out = io.StringIO()
    configure_logging(stream=out)
    secret = "entry body"
    try:
        raise ValueError(len(secret))
    except ValueError:
        structlog.get_logger().exception("failed")
    event = json.loads(out.getvalue())
    assert event["exception"][0]["exc_type"] == "ValueError"
    assert "locals" not in event["exception"][0]["frames"][0]
