"""Logging set-up: structlog to standard error, one event per line.

JSON off a terminal, coloured text on one. What other libraries say through the standard ``logging`` module (gRPC,
asyncio) comes out the same way. Programs that embed a node configure structlog as they like; nothing here runs by
itself.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any, Final, TextIO

import structlog

__all__ = ["LEVELS", "configure_logging"]

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _dumps(event: object, **options: Any) -> str:  # noqa: ANN401 - structlog's own signature
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"), **options)


def _wants_json(log_format: str, stream: TextIO) -> bool:
    return log_format == "json" or (log_format == "auto" and not stream.isatty())


def _renderers(as_json: bool, stream: TextIO) -> list[structlog.typing.Processor]:
    if as_json:
        return [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(serializer=_dumps),
        ]
    colours = stream.isatty() and not os.environ.get("NO_COLOR")
    return [
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
        structlog.dev.ConsoleRenderer(colors=colours),
    ]


class _StandardLibraryHandler(logging.Handler):
    """Hands a standard record to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelno if record.levelno in LEVELS.values() else logging.ERROR
        structlog.get_logger().bind(library=record.name).log(
            level, record.getMessage(), exc_info=record.exc_info or None
        )


def configure_logging(level: str = "info", log_format: str = "auto", stream: TextIO | None = None) -> None:
    """Send all events of ``level`` and above to ``stream`` (standard error).

    ``level``: debug, info, warning, error; ``log_format``: auto, json, console. Repeating it replaces the set-up.
    """
    out = sys.stderr if stream is None else stream
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            *_renderers(_wants_json(log_format, out), out),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _StandardLibraryHandler)]:
        root.removeHandler(handler)
    root.addHandler(_StandardLibraryHandler())
    root.setLevel(max(LEVELS[level], logging.WARNING))
