"""The table, the picture and the comparison say what the figures say."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from dledger.bench.compare import changes, load_runs, verdict
from dledger.bench.main import main
from dledger.bench.plot import draw
from dledger.bench.report import machine, parts, replace_parts, table
from dledger.bench.rows import ROWS
from dledger.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
PUBLISHED = REPOSITORY / "benchmarks" / "published.json"
WHY = REPOSITORY / "benchmarks" / "why.json"


def load_run(throughput: float, p50: float, **costs: float) -> dict[str, object]:
    return {
        "where": "group", "operation": "append", "concurrency": 64, "rate_per_s": None, "batch": 1, "size_bytes": 256,
        "channels": 1, "throughput_per_s": throughput, "latency_ms": {"p50": p50, "p99": 2 * p50},
        "cpu_us_per_entry": costs, "cpu_s": {"x": 1.0},
    }  # fmt: skip


def contender(*values: float, **costs: float) -> dict[str, object]:
    middle = sorted(values)[len(values) // 2]
    runs = [load_run(value, 1.0, **costs) for value in values]
    return {"values": list(values), "median": middle, "runs": runs}


@pytest.fixture
def results() -> dict[str, object]:
    costs = {"leader": 10.0, "follower 1": 4.0, "follower 2": 6.0, "clients": 8.0}
    return {
        "format": 1, "taken": "2026-01-02 03:04 UTC", "minutes": 5.0,
        "machine": {"cpus": "2", "cpu": "a cpu", "memory": "4 GiB", "kernel": "6", "python": "3.11", "grpcio": "1",
                    "protobuf": "7", "uvloop": "0", "file system": "ext4"},
        "versions": {"etcd": "3.4"}, "skipped": {"nats": "not installed"},
        "settings": {"rounds": 3, "duration_s": 4.0, "warmup_s": 1.0, "open_large_bytes": 10 << 30},
        "rows": {
            "one": {"dledger": contender(0.9, 0.8, 1.0), "etcd": contender(1.2), "rabbitmq": contender(0.85)},
            "c64": {"dledger": contender(40_000.0, 41_000.0, 30_000.0, **costs), "etcd": contender(5_000.0, **costs)},
            "unary": {"dledger": contender(800.0), "echo": contender(1_000.0)},
            "open-large": {"dledger": contender(0.25)},
            "get": {"dledger": {"values": [], "runs": [], "errors": ["UnavailableError: gone"]}},
        },
    }  # fmt: skip


def cells(markdown: str, key: str) -> list[str]:
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {key} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_medians_ratios_and_verdicts(results: dict[str, object]) -> None:
    made = table(results, {"one": "two hops of gRPC", "c64": "never shown, because it is met"})
    one = cells(made, "one")
    assert one[2] == "0.90 ms"
    assert one[4] == "etcd 1.20 ms; RabbitMQ 0.85 ms"
    assert one[5] == "1.33 / 0.94", "how many times as good: less is better here"
    assert one[7] == "**no**: two hops of gRPC"
    assert cells(made, "c64")[2:8] == ["40 000/s", "", "etcd 5 000/s", "8.00", "≥ 30 000/s", "yes"]
    assert cells(made, "unary")[7] == "**no**"
    assert cells(made, "open-large")[1].endswith("(10 GiB)")
    assert "failed" in cells(made, "get")
    assert "| batch " not in made, "not measured"


def test_cpu_is_that_of_the_busier_follower(results: dict[str, object]) -> None:
    made = parts(results, {})["cpu"]
    assert "| c64 | dledger | 10.0 | 6.00 | 8.00 |" in made


def test_the_short_table_leaves_out_who_was_not_there(results: dict[str, object]) -> None:
    made = parts(results, {})["short"]
    assert made.splitlines()[0] == "|  | dledger | etcd | RabbitMQ |"
    assert "| 64 concurrent single appends | 40 000/s | 5 000/s | - |" in made
    assert "NATS (no fsync) (not installed)" in parts(results, {})["machine"]


def test_a_disturbed_run_says_so(results: dict[str, object]) -> None:
    assert "Disturbed" not in parts(results, {})["machine"]
    for run in results["rows"]["c64"]["dledger"]["runs"]:  # type: ignore[index]
        run |= {"duration_s": 4.0, "cpu_s": {"leader": 4.0, "rest of the machine": 6.0}}
    assert "other programs used 1.5 of the 2 cores" in parts(results, {})["machine"]


def test_pages_get_their_marked_parts_and_nothing_else(results: dict[str, object]) -> None:
    page = "a\n<!-- bench:machine -->\nold\n<!-- /bench -->\nb\n<!-- bench:short --><!-- /bench -->\nc\n"
    made = replace_parts(page, parts(results, {}), Path("page.md"))
    assert "old" not in made
    assert made.startswith("a\n<!-- bench:machine -->\nTaken 2026-01-02")
    assert made.endswith("<!-- /bench -->\nc\n")
    assert replace_parts(made, parts(results, {}), Path("page.md")) == made
    for bad in ("no marks", "<!-- bench:nonsense --><!-- /bench -->"):
        with pytest.raises(ConfigError, match="bench"):
            replace_parts(bad, parts(results, {}), Path("page.md"))


def test_every_row_has_a_target_that_can_be_met_and_missed() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    others = dict.fromkeys(("etcd", "rabbitmq", "nats", "echo"), 100.0)
    for row in ROWS:
        verdicts = {row.met(others | {"dledger": ours}) for ours in (0.0001, 1e9)}
        assert verdicts == {True, False}, row.key
        assert row.met({"dledger": 0.0001} | others) is row.lower_is_better, row.key


def test_the_picture_is_well_formed_and_longer_bars_are_faster(results: dict[str, object]) -> None:
    root = ElementTree.fromstring(draw(results))
    bars = {
        element.get("class"): float(element.get("width", "0"))
        for element in root.iter("{http://www.w3.org/2000/svg}rect")
    }
    assert bars["ours"] > bars["peer"] > 0
    assert "dledger 40000" in (root.get("aria-label") or "")
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "40 000" in texts
    assert not any("one append at a time" in (text or "") for text in texts), "milliseconds have no place on this axis"


def test_the_published_pages_are_what_the_published_run_says() -> None:
    results, reasons = json.loads(PUBLISHED.read_text("utf-8")), json.loads(WHY.read_text("utf-8"))
    for name in ("docs/performance.md", "README.md"):
        page = (REPOSITORY / name).read_text("utf-8")
        assert replace_parts(page, parts(results, reasons), Path(name)) == page, f"{name}: run the report again"
    assert (REPOSITORY / "docs" / "images" / "performance.svg").read_text("utf-8") == draw(results)
    missed = [key for key in reasons if key not in {row.key for row in ROWS}]
    assert not missed, f"reasons for rows that are not there: {missed}"


def test_report_writes_pages_and_picture(results: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(results), encoding="utf-8")
    (tmp_path / "page.md").write_text("<!-- bench:table --><!-- /bench -->", encoding="utf-8")
    arguments = ["report", str(tmp_path / "run.json"), "--into", str(tmp_path / "page.md")]
    done = CliRunner().invoke(main, [*arguments, "--plot", str(tmp_path / "plot.svg")])
    assert done.exit_code == 0, done.output
    assert "40 000/s" in (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
    shown = CliRunner().invoke(main, ["report", str(tmp_path / "run.json")])
    assert "40 000/s" in shown.output


# ---------------------------------------------------------------- comparison


def test_faster_slower_and_noise() -> None:
    before = [load_run(1000.0, 2.0, leader=10.0, clients=99.0)]
    for throughput, p50, word in ((1050.0, 2.1, "SAME"), (700.0, 2.0, "SLOWER"), (1000.0, 3.0, "SLOWER"),
                                  (2000.0, 1.0, "FASTER")):  # fmt: skip
        found = changes(before, [load_run(throughput, p50, leader=5.0, clients=99.0)])
        assert verdict(found, 0.15).startswith(word)
        assert found[0].cpu == 0.5, "the nodes' alone"
    other = load_run(1.0, 1.0) | {"concurrency": 1}
    assert changes(before, [other]) == []
    assert verdict([], 0.15).startswith("NOTHING")


def test_only_runs_can_be_compared(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for text in ("{", "[]", '{"runs": [{}]}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="not a run"):
            load_runs(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_runs(tmp_path / "absent.json")
    path.write_text(json.dumps({"runs": [load_run(1.0, 1.0)]}), encoding="utf-8")
    assert len(load_runs(path)) == 1


def test_the_machine_paragraph_says_how_long_was_rested(results: dict[str, object]) -> None:
    assert "after at least 1 s of warm-up; what" in machine(results)
    settings = results["settings"]
    assert isinstance(settings, dict)
    settings["rest_s"] = 20.0
    assert "after at least 1 s of warm-up, each after 20 s of rest; what" in machine(results)
