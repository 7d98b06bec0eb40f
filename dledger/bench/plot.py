"""The appends of a suite as one picture: bars from zero on a linear axis, a group for each row."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from dledger.bench.rows import ASYNC, OURS, ROWS, Row
from dledger.chaos.svg import Scale, number, text, ticks

__all__ = ["draw"]

_WIDTH: Final = 900
_LEFT: Final = 250
_RIGHT: Final = 850
_BAR: Final = 15
_GAP: Final = 34
_TOP: Final = 58
_ORDER: Final = (OURS, ASYNC, "etcd", "rabbitmq", "nats")
_NAMES: Final = {
    OURS: "dledger",
    ASYNC: "dledger, ASYNC_FLUSH",
    "etcd": "etcd",
    "rabbitmq": "RabbitMQ quorum queue",
    "nats": "NATS JetStream (no fsync)",
}
_STYLE: Final = """\
svg{font:12px system-ui,sans-serif;background:#fff}text{fill:#1f2933}.head{font-size:15px;font-weight:600}
.row{font-weight:600}.label{fill:#52606d}.grid{stroke:#e4e7eb}.ours{fill:#0b69a3}.async{fill:#84c5f4}
.peer{fill:#9aa5b1}.nosync{fill:#d3cec4}.end{stroke:#52606d}
@media(prefers-color-scheme:dark){svg{background:#14181d}text{fill:#e4e7eb}.label{fill:#9aa5b1}.grid{stroke:#2b333c}
.ours{fill:#4098d7}.async{fill:#1d5a86}.peer{fill:#616e7c}.nosync{fill:#504a40}}"""
_CSS: Final = {OURS: "ours", ASYNC: "async", "nats": "nosync"}


def draw(results: Mapping[str, Any]) -> str:
    """Return an SVG picture of the rates of all append rows, medians as bars, the rounds as a thin line over each."""
    rows = [row for row in ROWS if row.kind == "appends" and row.unit == "/s" and row.key in results["rows"]]
    figures = [_figures(results, row) for row in rows]
    values = [value for row in figures for rounds in row.values() for value in rounds]
    scale = Scale(0.0, max(values, default=1000.0) * 1.1, _LEFT, _RIGHT)
    height = _TOP + sum(_GAP + _BAR * len(row) for row in figures) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(_label(rows, figures))}"><style>{_STYLE}</style>',
        text(12, 22, "Acknowledged entries a second, three nodes and the client on one machine", "head"),
        text(12, 40, _subtitle(results), "label"),
    ]
    for value in ticks(scale.high):
        x = number(scale(value))
        parts.append(f'<line class="grid" x1="{x}" y1="{_TOP}" x2="{x}" y2="{height - 18}"/>')
        parts.append(text(scale(value), height - 4, f"{value:,.0f}".replace(",", " "), "label", "middle"))
    y = float(_TOP)
    for row, found in zip(rows, figures, strict=True):
        parts.append(text(12, y + 20, row.title, "row"))
        y += _GAP - 8
        for name, rounds in found.items():
            parts += _bar(scale, y, name, rounds)
            y += _BAR
        y += 8
    return "\n".join([*parts, "</svg>"]) + "\n"


def _figures(results: Mapping[str, Any], row: Row) -> dict[str, list[float]]:
    contenders = results["rows"][row.key]
    return {name: sorted(contenders[name]["values"]) for name in _ORDER if contenders.get(name, {}).get("values")}


def _median(rounds: list[float]) -> float:
    middle = len(rounds) // 2
    return rounds[middle] if len(rounds) % 2 else (rounds[middle - 1] + rounds[middle]) / 2


def _bar(scale: Scale, y: float, name: str, rounds: list[float]) -> list[str]:
    end, lowest, highest = scale(_median(rounds)), scale(rounds[0]), scale(rounds[-1])
    css = _CSS.get(name, "peer")
    middle = number(y + (_BAR - 3) / 2)
    value = f"{_median(rounds):,.0f}".replace(",", " ")
    return [
        text(_LEFT - 8, y + 10, _NAMES[name], "label", "end"),
        f'<rect class="{css}" x="{_LEFT}" y="{number(y)}" width="{number(max(end - _LEFT, 0))}" height="{_BAR - 3}"/>',
        f'<line class="end" x1="{number(lowest)}" y1="{middle}" x2="{number(highest)}" y2="{middle}"/>',
        text(max(highest, end) + 6, y + 10, value, "label"),
    ]


def _subtitle(results: Mapping[str, Any]) -> str:
    facts, settings = results["machine"], results["settings"]
    rounds = settings["rounds"]
    medians = f"medians of {rounds} rounds (the line: lowest to highest)" if rounds > 1 else "one round"
    return f"fsync on and 256 B unless said otherwise; {facts['cpus']} CPUs; {medians}; {results['taken']}"


def _label(rows: list[Row], figures: list[dict[str, list[float]]]) -> str:
    """Say in words what the picture shows."""
    said = []
    for row, found in zip(rows, figures, strict=True):
        values = ", ".join(f"{_NAMES[name]} {_median(rounds):.0f}" for name, rounds in found.items())
        said.append(f"{row.title}: {values}")
    return "Acknowledged entries a second. " + "; ".join(said)
