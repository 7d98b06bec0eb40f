"""An entry as people and programs see it on standard output."""

from __future__ import annotations

import base64
import json

from dledger.types import Entry

__all__ = ["as_json", "as_json_line", "as_row"]


def as_json(entry: Entry) -> dict[str, object]:
    """Return ``{"index", "term", "type", "body"}``, or ``body_base64`` where the body is not UTF-8."""
    out: dict[str, object] = {"index": entry.index, "term": entry.term, "type": entry.type.name.lower()}
    try:
        out["body"] = entry.body.decode("utf-8")
    except UnicodeDecodeError:
        out["body_base64"] = base64.b64encode(entry.body).decode("ascii")
    return out


def as_json_line(entry: Entry) -> bytes:
    """Return `as_json` as one line."""
    return json.dumps(as_json(entry), ensure_ascii=False).encode("utf-8") + b"\n"


def as_row(entry: Entry) -> bytes:
    """Return a line for people: index, term, type, body; what would break the line or the terminal is escaped."""
    body = entry.body.decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in body)
    return f"{entry.index:>10}  {entry.term:>6}  {entry.type.name.lower():<8}  {shown}\n".encode()
