"""What a suite's JSON says, as Markdown: the table of targets, the plain short one, CPU an entry, the machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dledger.bench.rows import ASYNC, ECHO, OURS, ROWS, Row
from dledger.errors import ConfigError

__all__ = ["load_json", "parts", "replace_parts", "table"]

NAMES: Final = {
    OURS: "dledger",
    ASYNC: "dledger, ASYNC_FLUSH",
    ECHO: "echo",
    "etcd": "etcd",
    "rabbitmq": "RabbitMQ",
    "nats": "NATS (no fsync)",
    "page cache": "in the page cache",
}
_DISTURBED_CORES: Final = 0.25
"""The kernel's own threads are in what others use, so that it is never quite nothing."""

_BESIDE: Final = ("etcd", "rabbitmq", "nats", ECHO, "page cache")
_SHORT_ROWS: Final = ("one", "c64", "c1000", "batch")
_SHORT_COLUMNS: Final = (OURS, "etcd", "rabbitmq", "nats")
_SIZES: Final = {
    "read-warm": "read_bytes", "read-cold": "read_bytes", "catch-up": "catch_up_bytes",
    "open-large": "open_large_bytes", "open-small": "open_small_bytes", "rss": "memory_bytes",
}  # fmt: skip


def load_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object.

    Raises:
        ConfigError: it is not there, or no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    except ValueError as error:
        raise ConfigError([f"{path}: not JSON: {error}"]) from error
    if not isinstance(found, dict):
        raise ConfigError([f"{path}: not a JSON object"])
    return found


def _medians(results: Mapping[str, Any], row: Row) -> dict[str, float]:
    contenders = results["rows"].get(row.key, {})
    return {name: float(result["median"]) for name, result in contenders.items() if "median" in result}


def _written(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _with_unit(value: float, unit: str) -> str:
    return f"{_written(value)}{'' if unit.startswith('/') else ' '}{unit}"


def _title(results: Mapping[str, Any], row: Row) -> str:
    setting = _SIZES.get(row.key)
    size = results["settings"].get(setting) if setting else None
    if size is None:
        return row.title
    words = f"{size / 2**30:g} GiB" if size >= 2**30 else f"{size / 2**20:g} MiB"
    return f"{row.title} ({words})"


def _ratio(row: Row, figures: Mapping[str, float], name: str) -> str:
    """Return how many times as good we are."""
    ours, theirs = figures[OURS], figures[name]
    if not ours or not theirs:
        return "-"
    return f"{(theirs / ours if row.lower_is_better else ours / theirs):.2f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def table(results: Mapping[str, Any], reasons: Mapping[str, Any] | None = None) -> str:
    """Return every row that was measured: ours, ours with ASYNC_FLUSH, the others, ratios, target, verdict.

    ``reasons``: why a row misses its target, by key; shown only where it does.
    """
    lines = []
    for row in ROWS:
        figures = _medians(results, row)
        contenders = results["rows"].get(row.key, {})
        if not contenders:
            continue
        beside = [name for name in _BESIDE if name in figures]
        failed = [name for name, result in contenders.items() if "median" not in result]
        if OURS not in figures:
            lines.append([row.key, _title(results, row), "failed", "", "", "", row.target, "not measured"])
            continue
        others = [f"{NAMES[name]} {_with_unit(figures[name], row.unit)}" for name in beside]
        others += [f"{NAMES.get(name, name)} failed" for name in failed]
        lines.append(
            [
                row.key,
                _title(results, row),
                _with_unit(figures[OURS], row.unit),
                _with_unit(figures[ASYNC], row.unit) if ASYNC in figures else "",
                "; ".join(others),
                " / ".join(_ratio(row, figures, name) for name in beside if name != "page cache"),
                row.target,
                _verdict(row, figures, reasons or {}),
            ]
        )
    header = ("row", "what", "dledger", "ASYNC_FLUSH", "beside it", "times as good", "target", "met?")
    return _markdown(header, lines)


def _verdict(row: Row, figures: Mapping[str, float], reasons: Mapping[str, Any]) -> str:
    met = row.met(figures)
    if met is None:
        return "nothing to compare with"
    if met:
        return "yes"
    reason = str(reasons.get(row.key, ""))
    return f"**no**{': ' + reason if reason else ''}"


def short_table(results: Mapping[str, Any]) -> str:
    """Return the appends beside the peers that were there, a row each."""
    rows = [row for row in ROWS if row.key in _SHORT_ROWS and OURS in _medians(results, row)]
    columns = [name for name in _SHORT_COLUMNS if any(name in _medians(results, row) for row in rows)]
    lines = []
    for row in rows:
        figures = _medians(results, row)
        shown = [_with_unit(figures[name], row.unit) if name in figures else "-" for name in columns]
        lines.append([row.title, *shown])
    return _markdown(["", *[NAMES[name] for name in columns]], lines)


def cpu_table(results: Mapping[str, Any]) -> str:
    """Return CPU microseconds an entry of leader, followers and client: what carries over to other machines."""
    lines = []
    for row in ROWS:
        for name, result in results["rows"].get(row.key, {}).items():
            costs = [run["cpu_us_per_entry"] for run in result["runs"] if isinstance(run, dict) and run.get("cpu_s")]
            if not costs:
                continue
            server = "leader" if "leader" in costs[0] else "echo"
            followers = [key for key in costs[0] if key.startswith("follower")]
            cells = [_middle([cost.get(server, 0.0) for cost in costs])]
            cells.append(_middle([max(cost.get(key, 0.0) for key in followers) for cost in costs]) if followers else "")
            cells.append(_middle([cost.get("clients", 0.0) for cost in costs]))
            lines.append([row.key, NAMES.get(name, name), *cells])
    return _markdown(("row", "", "leader µs", "busier follower µs", "client µs"), lines)


def _middle(values: list[float]) -> str:
    return _written(sorted(values)[len(values) // 2])


def machine(results: Mapping[str, Any]) -> str:
    """Return one paragraph: machine, versions, rounds, who was left out."""
    facts, settings = results["machine"], results["settings"]
    versions = [f"{NAMES.get(name, name)} {version}" for name, version in results["versions"].items()]
    left_out = [f"{NAMES.get(name, name)} ({reason})" for name, reason in results["skipped"].items()]
    sentences = [
        f"Taken {results['taken']} in {results['minutes']:g} minutes: {facts['cpus']} CPUs ({facts['cpu']}), "
        f"{facts.get('memory', '?')}, Linux {facts['kernel']}, {facts['file system']}; Python {facts['python']}, "
        f"grpcio {facts['grpcio']}, protobuf {facts['protobuf']}, uvloop {facts['uvloop']}.",
        f"{_rounds(settings['rounds'])} of {settings['duration_s']:g} s after at least "
        f"{settings['warmup_s']:g} s of warm-up{_rest(settings.get('rest_s', 0.0))}; what takes a whole group "
        "apart or needs a large store, once.",
    ]
    others = _other_load(results)
    if others > _DISTURBED_CORES:
        sentences.append(
            f"**Disturbed**: other programs used {others:.1f} of the {facts['cpus']} cores meanwhile; ratios say "
            "more than rates."
        )
    if versions:
        sentences.append(f"Beside it: {', '.join(versions)}.")
    if left_out:
        sentences.append(f"Left out: {', '.join(left_out)}.")
    return " ".join(sentences)


def _rest(seconds: float) -> str:
    return f", each after {seconds:g} s of rest" if seconds else ""


def _rounds(count: int) -> str:
    return f"Medians of {count} rounds" if count > 1 else "One round"


def _other_load(results: Mapping[str, Any]) -> float:
    """Return the cores that neither nodes nor clients used, in the middle of all windows."""
    found = [
        run["cpu_s"].get("rest of the machine", 0.0) / run["duration_s"]
        for row in results["rows"].values()
        for result in row.values()
        for run in result["runs"]
        if isinstance(run, dict) and run.get("cpu_s") and run.get("duration_s")
    ]
    return sorted(found)[len(found) // 2] if found else 0.0


def parts(results: Mapping[str, Any], reasons: Mapping[str, Any]) -> dict[str, str]:
    """Return what pages may show, by the name of the mark."""
    return {
        "table": table(results, reasons),
        "short": short_table(results),
        "cpu": cpu_table(results),
        "machine": machine(results),
    }


def replace_parts(page: str, made: Mapping[str, str], where: Path) -> str:
    """Return a page with everything between ``<!-- bench:NAME -->`` and ``<!-- /bench -->`` made anew.

    Raises:
        ConfigError: a mark of a name that is not known, or no mark at all.
    """
    unknown = [name for name in re.findall(r"<!-- bench:(\w+) -->", page) if name not in made]
    if unknown or "<!-- bench:" not in page:
        problem = f"unknown mark bench:{unknown[0]}" if unknown else "no <!-- bench:NAME --> in it"
        raise ConfigError([f"{where}: {problem}; known: {', '.join(made)}"])

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{made[match[2]]}\n{match[3]}"

    return re.sub(r"(<!-- bench:(\w+) -->).*?(<!-- /bench -->)", fill, page, flags=re.S)
