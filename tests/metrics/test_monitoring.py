"""The sample alert rules and the dashboard: they load, they fire, and they ask only for metrics that are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.broker.harness import local_config, running
from tests.metrics.conftest import fetch, promtool

REPOSITORY = Path(__file__).resolve().parents[2]
MONITORING = REPOSITORY / "conf" / "monitoring"
ALERTS = MONITORING / "alerts.yml"
DASHBOARD = MONITORING / "grafana-dashboard.json"
METRIC = re.compile(r"\b(?:dledger|rocketmq)_\w+")


def dashboard_expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def alert_names() -> list[str]:
    return re.findall(r"- alert: (\w+)", ALERTS.read_text())


def test_promtool_takes_the_rules():
    checked = promtool("check", "rules", str(ALERTS))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_fires_when_it_should():
    scenario = Path(__file__).with_name("alerts_test.yml")
    assert set(re.findall(r"alertname: (\w+)", scenario.read_text())) == set(alert_names())
    tested = promtool("test", "rules", str(scenario))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_dashboard_is_one_that_grafana_loads():
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "dledger"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        assert {"type", "title", "gridPos", "datasource", "targets"} <= panel.keys()
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval", "__all"}
    assert used <= names


@pytest.mark.parametrize("expression", dashboard_expressions())
def test_every_expression_of_the_dashboard_parses(tmp_path, expression):
    text = expression.replace("$__rate_interval", "1m").replace("$group", ".*")
    rules = tmp_path / "rules.yml"
    rules.write_text(json.dumps({"groups": [{"name": "g", "rules": [{"record": "x", "expr": text}]}]}))
    checked = promtool("check", "rules", str(rules))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.asyncio
async def test_rules_and_dashboard_ask_for_metrics_that_are_there(group, tmp_path):
    nodes = group(1)
    server = await nodes.start("n0", metricsPort="0")
    await nodes.wait_leader()
    config = local_config(tmp_path / "b", metrics_exporter_type="PROM", metrics_prom_exporter_port=0)
    async with running(config) as broker:
        pages = [(await fetch(address, "/metrics"))[1] for address in (server.metrics_address, broker.metrics_address)]
    families = re.findall(r"^# TYPE (\S+) (\w+)", "\n".join(pages), re.M)
    there = {name for name, _ in families}
    there |= {f"{name}_{part}" for name, kind in families if kind == "histogram" for part in ("bucket", "sum", "count")}
    # These have a series for each topic or client, of which there is none yet; tests/metrics/test_broker.py sees them.
    there |= {"rocketmq_messages_in_total", "rocketmq_messages_out_total", "rocketmq_consumer_lag_messages"}
    there |= {"dledger_peer_lag_seconds", "dledger_peer_lag_entries", "dledger_replicate_entry_latency_seconds_bucket"}
    there |= {"dledger_peer_round_trip_seconds_bucket"}
    asked = {
        name
        for text in [*dashboard_expressions(), *re.findall(r"expr: (.*)", ALERTS.read_text())]
        for name in METRIC.findall(text)
    }
    assert asked <= there
