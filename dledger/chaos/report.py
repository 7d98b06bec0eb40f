"""The report: one HTML file with everything in it, readable without a network. See `render`.

Pictures are SVG written here, on one time axis: throughput, latency, nodes, operations. Colours are Okabe and Ito's,
which colour-blind readers can tell apart; each kind of fault has a pattern besides.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from html import escape
from math import inf, isfinite
from typing import Final

from dledger.chaos.judge import Judgement, percentile
from dledger.chaos.record import FaultSpan, NodeSample, Record, embed
from dledger.chaos.svg import Panel, Scale, decades, dots, number, polyline, text, ticks
from dledger.checker import ACKNOWLEDGED, FAILED

__all__ = ["render"]

_BUCKETS: Final = 240
_TOP: Final = 26
_PATTERNS: Final = {
    "kill": ("#d55e00", '<path d="M0 8L8 0"/>'),
    "pause": ("#e69f00", '<path d="M0 4H8"/>'),
    "partition": ("#cc79a7", '<path d="M0 0L8 8M0 8L8 0"/>'),
    "delay": ("#56b4e9", '<path d="M4 0V4"/>'),
    "slow-disk": ("#009e73", '<path d="M4 0V8"/>'),
    "disk-full": ("#7a5c00", '<path d="M0 4H8M4 0V8"/>'),
    "fsync-error": ("#8b0000", '<path d="M0 0L8 8"/>'),
    "retry": ("#0072b2", '<path d="M0 2H4M4 6H8"/>'),
    "transfer": ("#666666", '<path d="M2 2h1M6 6h1"/>'),
}
"""Kind of fault → colour and the lines of its pattern, 8 by 8."""

_ROLE_COLOURS: Final = {
    "leader": "#009e73",
    "follower": "#b9d7ea",
    "pre_candidate": "#f0e442",
    "candidate": "#e69f00",
    "down": "#3a3a3a",
    "stopping": "#8b0000",
    "paused": "#999999",
    "silent": "#dddddd",
}

_LOW_MS: Final = 0.5
_NO_ANSWER: Final = "no answer"

_STYLE: Final = """
:root{font:14px/1.45 system-ui,sans-serif;color:#1b1b1b;background:#fff}
body{max-width:1240px;margin:0 auto;padding:16px 20px 60px}
h1{font-size:22px;margin:0 0 10px}h2{font-size:16px;margin:28px 0 4px}
p.note{margin:0 0 6px;color:#555}
.verdict{border-left:10px solid;padding:12px 18px;margin:0 0 14px;border-radius:4px}
.verdict.pass{border-color:#009e73;background:#e8f6f1}.verdict.fail{border-color:#d55e00;background:#fdeee4}
.verdict pre{margin:0;white-space:pre-wrap;font:13px/1.5 ui-monospace,monospace}
.figures{display:flex;flex-wrap:wrap;gap:10px;margin:0 0 8px}
.figures div{background:#f4f6f8;border-radius:6px;padding:8px 14px;min-width:96px}
.figures b{display:block;font-size:19px;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:3px 12px 3px 0;text-align:left;border-bottom:1px solid #e3e3e3;vertical-align:top}
td.n,th.n{text-align:right}
svg.panel{display:block;width:100%;height:auto;overflow:visible}
.label{font-size:11px;fill:#444}.small{font-size:10px;fill:#333}.bold{font-size:12px;font-weight:600;fill:#1b1b1b}
.on-bar{font-size:10px;fill:#1b1b1b}
.grid{stroke:#e6e6e6}.tick{stroke:#888}.cursor{stroke:#000;stroke-opacity:.45;visibility:hidden}
.election{stroke:#009e73;stroke-width:1.2;stroke-dasharray:3 2}
.rate{fill:none;stroke:#0072b2;stroke-width:1.6}
.p50{fill:none;stroke:#0072b2;stroke-width:1.5}.p99{fill:none;stroke:#e69f00;stroke-width:1.5}
.max{fill:none;stroke:#d55e00;stroke-width:1.2}.lag{fill:none;stroke:#cc79a7;stroke-width:1.4}
.dot{fill:none;stroke-linecap:round;stroke-width:1.7}
.ack{stroke:#0072b2;stroke-opacity:.55}.found{stroke:#56b4e9;stroke-width:4}.absent{stroke:#e69f00;stroke-width:4}
.refused{stroke:#777;stroke-width:2.6}.bad{stroke:#d55e00;stroke-width:2.4;fill:none}
.twice{stroke:#cc79a7;stroke-width:2.4;fill:none}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;margin:2px 0 4px;font-size:12px}
.legend svg{vertical-align:-3px;margin-right:4px}
#now{position:fixed;right:18px;bottom:14px;background:#1b1b1b;color:#fff;padding:4px 10px;border-radius:4px;
font:12px ui-monospace,monospace;visibility:hidden;max-width:70vw}
details pre{max-height:320px;overflow:auto;background:#f4f6f8;padding:8px;font-size:12px}
.wide{overflow-x:auto;overflow-y:hidden}
@media(max-width:760px){body{padding:12px 10px 40px}svg.panel{width:760px}#configuration td+td{overflow-wrap:anywhere}}
#losses td,#losses th{white-space:nowrap}
@media(prefers-color-scheme:dark){
:root{color:#dfe5ec;background:#12171d;color-scheme:dark}
p.note{color:#a3adb8}.figures div,details pre{background:#1d252e}th,td{border-color:#333d48}
.verdict.pass{background:#10302a}.verdict.fail{background:#3a2013}
.label{fill:#b4bec9}.small{fill:#c6ced7}.bold{fill:#dfe5ec}.grid{stroke:#2a333d}.tick{stroke:#7d8894}
.cursor{stroke:#fff}.rate,.p50{stroke:#56b4e9}.ack{stroke:#56b4e9}
#now{background:#dfe5ec;color:#12171d}
}
@media print{#now{display:none}}
"""

_SCRIPT: Final = """
(function () {
  'use strict';
  var panels = Array.prototype.slice.call(document.querySelectorAll('svg.panel'));
  var now = document.getElementById('now');
  var faults = JSON.parse(document.getElementById('faults').textContent);
  panels.forEach(function (panel) {
    panel.addEventListener('mousemove', function (event) {
      var box = panel.getBoundingClientRect();
      var left = +panel.dataset.left, right = +panel.dataset.right, end = +panel.dataset.end;
      var x = (event.clientX - box.left) * panel.viewBox.baseVal.width / box.width;
      var at = (x - left) / (right - left) * end;
      var inside = at >= 0 && at <= end;
      panels.forEach(function (other) {
        var line = other.querySelector('.cursor');
        line.style.visibility = inside ? 'visible' : 'hidden';
        line.setAttribute('x1', x);
        line.setAttribute('x2', x);
      });
      var active = faults.filter(function (f) { return f[0] <= at && at <= f[1]; });
      now.textContent = at.toFixed(2) + ' s  ' + active.map(function (f) { return f[2]; }).join('; ');
      now.style.visibility = inside ? 'visible' : 'hidden';
    });
  });
  document.documentElement.dataset.ready = String(panels.length);
})();
"""


def render(record: Record, judgement: Judgement) -> str:
    """Return the page. It needs no other file and names no host; the history inside can be judged again."""
    end_s = _end(record)
    state = "pass" if judgement.ok else "fail"
    body = [
        f"<h1>dledger chaos, seed {escape(str(record.meta.get('seed', '?')))}</h1>",
        f'<div class="verdict {state}" id="verdict"><pre>{escape(chr(10).join(judgement.lines(record)))}</pre></div>',
        _figures(record, judgement),
        "<h2>Throughput</h2>",
        _fault_legend(record),
        _throughput(record, end_s),
        "<h2>Latency of appends</h2>",
        '<p class="note">By the time of the call; logarithmic. '
        '<span style="color:#0072b2">p50</span> <span style="color:#e69f00">p99</span> '
        '<span style="color:#d55e00">max</span></p>',
        _latency(record, end_s),
        "<h2>Nodes</h2>",
        _role_legend(),
        _lanes(record, end_s),
        "<h2>Leader losses</h2>",
        _losses(record),
        "<h2>Operations</h2>",
        _operations(record, end_s),
        "<h2>What happened</h2>",
        _events(record),
        "<h2>Configuration</h2>",
        _configuration(record),
    ]
    spans = ",".join(
        f"[{span.began:.3f},{end_s if span.ended is None else span.ended:.3f},{_json_text(span.words)}]"
        for span in record.faults
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{'PASS' if judgement.ok else 'FAIL'} dledger chaos</title>"
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>{_definitions()}{"".join(body)}'
        f'<div id="now"></div><script type="application/json" id="faults">[{spans}]</script>'
        f"<script>{_SCRIPT}</script>\n{embed(record)}\n</body></html>\n"
    )


def _json_text(words: str) -> str:
    """A JSON string that cannot end the script element around it."""
    return json.dumps(words).replace("<", "\\u003c")


def _end(record: Record) -> float:
    """The time axis ends when the last client had its last answer."""
    finite = [ret for ret in record.history.rets if isfinite(ret)]
    return max([float(record.meta.get("load_s", 0.0)), *finite, *record.history.calls, 1.0])


# -------------------------------------------------------------------- words and figures


def _figures(record: Record, judgement: Judgement) -> str:
    verdict, counts = judgement.verdict, record.meta.get("counts", {})
    load_s = float(record.meta.get("load_s", 0.0)) or 1.0
    cells = [
        (f"{verdict.acknowledged}", "acknowledged"),
        (f"{verdict.acknowledged / load_s:.0f}/s", "mean rate"),
        (f"{judgement.lost}", "lost"),
        (f"{sum(verdict.counts.values())}", "violations"),
        (f"{verdict.unknown}", "unknown"),
        (f"{verdict.failed}", "refused"),
        (f"{counts.get('kills', 0)}", "kills"),
        (f"{counts.get('pause', 0)}", "pauses"),
        (f"{counts.get('partition', 0)}", "cuts"),
        (f"{len(record.elections)}", "elections"),
        (f"{max(judgement.gaps_ms):.0f} ms" if judgement.gaps_ms else "-", "worst write gap"),
    ]
    return '<div class="figures">' + "".join(f"<div><b>{escape(a)}</b>{escape(b)}</div>" for a, b in cells) + "</div>"


def _losses(record: Record) -> str:
    if not record.losses:
        return '<p class="note">The leader was never lost.</p>'
    head = "".join(
        f'<th class="{css}">{escape(name)}</th>'
        for name, css in (
            ("at", "n"), ("fault", ""), ("leader", ""), ("detected", "n"), ("elected", "n"), ("new leader", ""),
            ("first ack", "n"), ("write gap", "n"), ("a majority was left", ""),
        )
    )  # fmt: skip
    rows = []
    for loss in record.losses:
        cells = (
            (f"{loss.at:.2f} s", "n"), (loss.kind, ""), (loss.node, ""), (_ms(loss.detected_ms), "n"),
            (_ms(loss.elected_ms), "n"), (loss.elected, ""), (_ms(loss.first_ack_ms), "n"), (_ms(loss.gap_ms), "n"),
            ("yes" if loss.failover else "no", ""),
        )  # fmt: skip
        rows.append("<tr>" + "".join(f'<td class="{css}">{escape(words)}</td>' for words, css in cells) + "</tr>")
    note = '<p class="note">Milliseconds since the fault. Write gap: the longest time without an acknowledgement.</p>'
    return f'{note}<div class="wide"><table id="losses"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _events(record: Record) -> str:
    lines = "\n".join(f"{event.at:8.3f}  {event.words}" for event in record.events)
    return f"<details><summary>{len(record.events)} events</summary><pre>{escape(lines)}</pre></details>"


def _configuration(record: Record) -> str:
    shown = {key: value for key, value in record.meta.items() if key not in {"counts", "problems", "error"}}
    rows = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>" for key, value in shown.items())
    return f'<table id="configuration">{rows}</table>'


# -------------------------------------------------------------------- faults, on every picture


def _definitions() -> str:
    patterns = "".join(
        f'<pattern id="f-{kind}" width="8" height="8" patternUnits="userSpaceOnUse">'
        f'<rect width="8" height="8" fill="{colour}" fill-opacity=".13"/>'
        f'<g stroke="{colour}" stroke-opacity=".55" fill="none">{lines}</g></pattern>'
        for kind, (colour, lines) in _PATTERNS.items()
    )
    return f'<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>{patterns}</defs></svg>'


def _fault_legend(record: Record) -> str:
    kinds = Counter(span.kind for span in record.faults)
    items = "".join(
        f'<span><svg width="22" height="14"><rect width="22" height="14" fill="url(#f-{escape(kind)})"/></svg>'
        f"{escape(kind)} ({count})</span>"
        for kind, count in kinds.items()
    )
    election = (
        '<span><svg width="22" height="14"><path class="election" d="M11 0V14"/></svg>election, with its term</span>'
    )
    return f'<div class="legend">{items}{election}</div>'


def _role_legend() -> str:
    items = "".join(
        f'<span><svg width="14" height="14"><rect width="14" height="14" fill="{colour}"/></svg>{role}</span>'
        for role, colour in _ROLE_COLOURS.items()
    )
    lag = '<span><svg width="22" height="14"><path class="lag" d="M0 7H22"/></svg>entries behind (log)</span>'
    cut = '<span><svg width="22" height="14"><rect width="22" height="5" fill="#cc79a7"/></svg>links cut</span>'
    return f'<div class="legend">{items}{cut}{lag}</div>'


def _shade(panel: Panel, record: Record, top: float, bottom: float) -> None:
    """Faults as patterns over the whole height, elections as lines with their terms."""
    for span in record.faults:
        panel.add(_rect(panel, span, top, bottom - top))
    last_label = -inf
    for election in record.elections:
        if election.at > panel.end_s:
            continue
        x = panel.x(election.at)
        panel.add(
            f'<line class="election" x1="{number(x)}" y1="{number(top)}" x2="{number(x)}" y2="{number(bottom)}">'
            f"<title>{escape(election.node)} elected, term {election.term}, {election.at:.2f} s</title></line>"
        )
        if x - last_label > 26:
            panel.add(text(x, top - 5, f"t{election.term}", "small", "middle"))
            last_label = x


def _rect(panel: Panel, span: FaultSpan, y: float, height: float) -> str:
    ended = panel.end_s if span.ended is None else span.ended
    x = panel.x(span.began)
    width = max(panel.x(ended) - x, 2.0)
    kind = span.kind if span.kind in _PATTERNS else "transfer"
    return (
        f'<rect class="fault" x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}" '
        f'fill="url(#f-{kind})"><title>{escape(span.words)}, {span.began:.2f}-{ended:.2f} s</title></rect>'
    )


# -------------------------------------------------------------------- the pictures


def _throughput(record: Record, end_s: float) -> str:
    width_s = end_s / _BUCKETS
    counts = [0] * _BUCKETS
    history = record.history
    for outcome, ret in zip(history.outcomes, history.rets, strict=True):
        if outcome == ACKNOWLEDGED:
            counts[min(int(ret / width_s), _BUCKETS - 1)] += 1
    rates = [count / width_s for count in counts]
    panel = Panel("throughput", 210, end_s)
    bottom = panel.height - 24
    scale = Scale(0.0, max(rates) * 1.05 or 1.0, bottom, _TOP)
    panel.value_axis(scale, ticks(max(rates), 4), "/s")
    _shade(panel, record, _TOP, bottom)
    panel.add(
        polyline([(panel.x((n + 0.5) * width_s), scale(rate)) for n, rate in enumerate(rates)], "rate"),
    )
    panel.time_axis(bottom)
    return panel.render("acknowledged appends per second over time, faults shaded")


def _latency(record: Record, end_s: float) -> str:
    width_s = end_s / _BUCKETS
    buckets: dict[int, list[float]] = {}
    history = record.history
    for outcome, call, ret in zip(history.outcomes, history.calls, history.rets, strict=True):
        if outcome == ACKNOWLEDGED:
            buckets.setdefault(min(int(call / width_s), _BUCKETS - 1), []).append((ret - call) * 1000)
    worst = max((max(values) for values in buckets.values()), default=1.0)
    panel = Panel("latency", 240, end_s)
    bottom = panel.height - 24
    scale = Scale(_LOW_MS, max(10 * _LOW_MS, worst * 1.3), bottom, _TOP, log=True)
    panel.value_axis(scale, decades(_LOW_MS, scale.high), " ms")
    _shade(panel, record, _TOP, bottom)
    curves: tuple[tuple[str, Callable[[list[float]], float]], ...] = (
        ("max", max),
        ("p99", lambda values: percentile(values, 99)),
        ("p50", lambda values: percentile(values, 50)),
    )
    for css, summary in curves:
        points = ((panel.x((n + 0.5) * width_s), scale(summary(buckets[n]))) for n in sorted(buckets))
        panel.add(polyline(points, css))
    panel.time_axis(bottom)
    return panel.render("latency of acknowledged appends: p50, p99 and maximum over time, faults shaded")


_LANE: Final = 52


def _lanes(record: Record, end_s: float) -> str:
    nodes = sorted({sample.node for sample in record.samples})
    panel = Panel("lanes", _TOP + _LANE * max(len(nodes), 1) + 24, end_s)
    bottom = panel.height - 24
    front = _front(record.samples)
    _shade(panel, record, _TOP, bottom)
    for row, node in enumerate(nodes):
        samples = [sample for sample in record.samples if sample.node == node and sample.at <= end_s]
        _lane(panel, node, samples, front, _TOP + row * _LANE)
    panel.time_axis(bottom)
    return panel.render("role, term and lag of each node over time")


def _front(samples: Iterable[NodeSample]) -> dict[int, int]:
    """Tenth of a second → the highest commit index that any node had shown by then."""
    front: dict[int, int] = {}
    highest = -1
    for sample in sorted(samples, key=lambda sample: sample.at):
        highest = max(highest, sample.commit_index)
        front[int(sample.at * 10)] = highest
    return front


def _lane(panel: Panel, node: str, samples: list[NodeSample], front: dict[int, int], y: float) -> None:
    """One node: a bar by role, its terms, the links it lacks, and how far it is behind."""
    panel.add(text(panel.LEFT - 10, y + 16, node, "bold", "end"))
    for state, first, last in _runs(samples, lambda sample: sample.state):
        x, end = panel.x(first), panel.x(last)
        panel.add(
            f'<rect class="lane" x="{number(x)}" y="{number(y + 4)}" width="{number(max(end - x, 1.0))}" height="16" '
            f'fill="{_ROLE_COLOURS.get(state, "#dddddd")}"><title>{escape(node)}: {escape(state)}, '
            f"{first:.1f}-{last:.1f} s</title></rect>"
        )
    for cut, first, last in _runs(samples, lambda sample: "cut" if sample.cut else ""):
        if cut:
            x = panel.x(first)
            width = max(panel.x(last) - x, 1.0)
            panel.add(f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" height="3" fill="#cc79a7"/>')
    last_label = -inf
    for term, first, _ in _runs([s for s in samples if s.pid > 0], lambda sample: str(sample.term)):
        if panel.x(first) - last_label > 24:
            last_label = panel.x(first)
            panel.add(text(last_label + 2, y + 16, term, "on-bar"))
    behind = Scale(1.0, 1e5, y + 48, y + 24, log=True)
    points = []
    for sample in samples:
        lag = max(front.get(int(sample.at * 10), 0) - sample.commit_index, 0)
        points.append((panel.x(sample.at), behind(max(lag, 1))))
    panel.add(polyline(points, "lag"))
    panel.add(text(panel.LEFT - 10, y + 40, "lag", "label", "end"))


def _runs(samples: list[NodeSample], key: Callable[[NodeSample], str]) -> list[tuple[str, float, float]]:
    """Stretches of equal ``key``: (key, begin, end); each ends where the next begins."""
    out: list[tuple[str, float, float]] = []
    for sample in samples:
        name = key(sample)
        if out:
            out[-1] = (out[-1][0], out[-1][1], sample.at)
        if not out or out[-1][0] != name:
            out.append((name, sample.at, sample.at))
    return out


_DOT_KINDS: Final = (
    ("ack", "acknowledged"),
    ("refused", "refused: definitely not in the log"),
    ("absent", "unknown, absent from the log"),
    ("found", "unknown, found in the log"),
)


def _operations(record: Record, end_s: float) -> str:
    """Every append at the time of its call and the height of its latency; what nobody answered stands above."""
    history = record.history
    places: Counter[Hashable] = Counter(value for value in record.log if value is not None)
    answered = [ret - call for call, ret in zip(history.calls, history.rets, strict=True) if isfinite(ret)]
    panel = Panel("operations", 340, end_s)
    bottom, roof = panel.height - 24, _TOP + 24
    scale = Scale(_LOW_MS, max(10 * _LOW_MS, 1300 * max(answered, default=0.01)), bottom, roof + 6, log=True)
    panel.value_axis(scale, decades(_LOW_MS, scale.high), " ms")
    panel.add(text(panel.LEFT - 6, _TOP + 16, _NO_ANSWER, "label", "end"))
    _shade(panel, record, _TOP, bottom)
    points: dict[str, list[tuple[float, float]]] = {css: [] for css, _ in _DOT_KINDS}
    totals: Counter[str] = Counter()
    crosses: list[str] = []
    for operation, value in enumerate(history.values):
        call, ret = history.calls[operation], history.rets[operation]
        at = (panel.x(call), scale((ret - call) * 1000) if isfinite(ret) else _TOP + 12.0)
        found = places.get(value, 0)
        css = _kind_of(history.outcomes[operation], found)
        totals[css] += 1
        points[css].append(at)
        bad = _offence(record, operation, found)
        if bad:
            crosses.append(_cross(at, bad, history.describe(operation)))
    for css, words in _DOT_KINDS:
        if points[css]:
            panel.add(dots(points[css], f"dot {css}", f"{words}: {totals[css]}"))
    panel.add(*crosses)
    panel.time_axis(bottom)
    legend = "".join(
        f'<span><svg width="12" height="12"><path class="dot {css}" d="M6 6h0"/></svg>{words} ({totals[css]})</span>'
        for css, words in _DOT_KINDS
    )
    marks = f"<span>crosses: lost, moved, doubled or wrongly refused ({len(crosses)})</span>"
    return f'<div class="legend">{legend}{marks}</div>' + panel.render("every append as a dot, by outcome")


def _kind_of(outcome: int, found: int) -> str:
    if outcome == ACKNOWLEDGED:
        return "ack"
    if outcome == FAILED:
        return "refused"
    return "found" if found else "absent"


def _offence(record: Record, operation: int, found: int) -> str:
    """What is wrong with one append, in a word; empty: nothing."""
    history = record.history
    outcome, value = history.outcomes[operation], history.values[operation]
    if found > 1:
        return "DUPLICATE"
    if outcome == FAILED and found:
        return "REFUSED, YET THERE"
    if outcome == ACKNOWLEDGED:
        index = history.indexes[operation]
        if not 0 <= index < len(record.log) or record.log[index] != value:
            return "MOVED" if found else "LOST"
    return ""


def _cross(at: tuple[float, float], bad: str, words: str) -> str:
    x, y = at
    css = "twice" if bad == "DUPLICATE" else "bad"
    return (
        f'<path class="{css} cross" d="M{number(x - 6)} {number(y - 6)}l12 12m0 -12l-12 12">'
        f"<title>{escape(bad)}: {escape(words)}</title></path>"
    )
