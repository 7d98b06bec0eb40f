"""Two runs beside each other: what became faster, what slower, and whether that is more than noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dledger.errors import ConfigError

__all__ = ["Change", "changes", "load_runs", "verdict"]

_KEYS: Final = ("operation", "concurrency", "rate_per_s", "batch", "size_bytes", "channels")
_DEFAULTS: Final = {"operation": "append", "channels": 1}


@dataclass(frozen=True, slots=True)
class Change:
    """One load in both runs. Ratios are now / before: of the throughput, of p50, of p99, of all nodes' CPU an entry."""

    name: str
    throughput: float
    p50: float
    p99: float
    cpu: float | None

    def is_slower(self, tolerance: float) -> bool:
        """Whether fewer entries came through, or each took longer in the middle of its kind, beyond the tolerance."""
        return self.throughput < 1 - tolerance or self.p50 > 1 / (1 - tolerance)

    def is_faster(self, tolerance: float) -> bool:
        """The opposite."""
        return not self.is_slower(tolerance) and (self.throughput > 1 / (1 - tolerance) or self.p50 < 1 - tolerance)


def load_runs(path: Path) -> list[dict[str, Any]]:
    """Return the runs of a file that ``dledger bench -o json`` wrote.

    Raises:
        ConfigError: it is not there, or something else.
    """
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        for run in runs:
            float(run["throughput_per_s"])
            float(run["latency_ms"]["p50"])
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{path}: not a run of `dledger bench -o json`"]) from error
    return list(runs)


def _key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    key = tuple(run.get(name) or _DEFAULTS.get(name) for name in _KEYS)
    return (*key, run.get("where", "group"))


def _name(run: Mapping[str, Any]) -> str:
    load = f"{run['rate_per_s']:g}/s offered" if run.get("rate_per_s") else f"{run['concurrency']} in flight"
    batch = f" × {run['batch']}" if run.get("batch", 1) > 1 else ""
    return f"{run.get('operation') or 'append'}, {load}{batch}, {run['size_bytes']} B"


def _node_cpu(run: Mapping[str, Any]) -> float:
    costs: Mapping[str, float] = run.get("cpu_us_per_entry") or {}
    return sum(cost for name, cost in costs.items() if name not in {"clients", "rest of the machine"})


def _ratio(now: float, before: float) -> float:
    return now / before if before else 1.0


def changes(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[Change]:
    """Return the change of every load that is in both."""
    known = {_key(run): run for run in before}
    found = []
    for run in now:
        old = known.get(_key(run))
        if old is None:
            continue
        cpu = _ratio(_node_cpu(run), _node_cpu(old)) if _node_cpu(run) and _node_cpu(old) else None
        latency, old_latency = run["latency_ms"], old["latency_ms"]
        found.append(
            Change(
                _name(run),
                _ratio(run["throughput_per_s"], old["throughput_per_s"]),
                _ratio(latency["p50"], old_latency["p50"]),
                _ratio(latency["p99"], old_latency["p99"]),
                cpu,
            )
        )
    return found


def verdict(found: Sequence[Change], tolerance: float) -> str:
    """Return one sentence: ``SLOWER: …``, ``FASTER: …`` or ``SAME: …``."""
    slower = [change.name for change in found if change.is_slower(tolerance)]
    faster = [change.name for change in found if change.is_faster(tolerance)]
    if not found:
        return "NOTHING TO COMPARE: no load is in both runs"
    if slower:
        return "SLOWER: " + "; ".join(slower)
    if faster:
        return "FASTER: " + "; ".join(faster)
    return f"SAME: all within {tolerance:.0%}"
