"""How a command's answer is printed: upstream's columns, or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import click

from broker_adapter.message import Message, parse_properties

__all__ = ["message_fields", "print_json", "print_table", "time_text"]


def print_json(value: object) -> None:
    """Print a value as JSON, one document."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print upstream's kind of table: names with ``#``, columns aligned."""
    table = [[f"#{name}" for name in header], *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def time_text(timestamp_ms: int) -> str:
    """Write a time as upstream does; empty where there is none."""
    if timestamp_ms <= 0:
        return ""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(timestamp_ms / 1000))},{timestamp_ms % 1000:03d}"


def message_fields(message: Message) -> dict[str, object]:
    """Return what queryMsgById shows, by upstream's labels."""
    properties = parse_properties(message.properties)
    return {
        "OffsetID": message.message_id,
        "Topic": message.topic,
        "Tags": properties.get("TAGS", ""),
        "Keys": properties.get("KEYS", ""),
        "Queue ID": message.queue_id,
        "Queue Offset": message.queue_offset,
        "CommitLog Offset": message.physical_offset,
        "Reconsume Times": message.reconsume_times,
        "Born Timestamp": time_text(message.born_timestamp),
        "Store Timestamp": time_text(message.store_timestamp),
        "Born Host": f"{message.born_host[0]}:{message.born_host[1]}",
        "Store Host": f"{message.store_host[0]}:{message.store_host[1]}",
        "System Flag": message.sys_flag,
        "Properties": properties,
        "Message Body": message.body.decode("utf-8", "replace"),
    }
