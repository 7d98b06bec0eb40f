"""docs/security.md and docs/metrics.md say what the code does, where a machine can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dledger.config import SETTINGS
from dledger.security.tokens import NEEDED_RIGHTS, Right, parse_tokens
from tests.metrics.conftest import fetch, group

__all__ = ["group"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECURITY = (DOCS / "security.md").read_text(encoding="utf-8")
METRICS = (DOCS / "metrics.md").read_text(encoding="utf-8")


def test_every_setting_of_security_is_explained():
    keys = [setting.key for setting in SETTINGS if setting.section == "Security"]
    assert [key for key in keys if key not in SECURITY] == []
    assert [setting.key for setting in SETTINGS if setting.section == "Metrics" and setting.key not in METRICS] == []


def test_the_table_of_rights_is_true():
    rows = dict(re.findall(r"^\| `?(\w+)`? \| (.*) \|$", SECURITY, re.M))
    for right in Right:
        methods = {m.rpartition("/")[2] for m, needed in NEEDED_RIGHTS.items() if needed == {right}}
        assert methods <= set(re.findall(r"\w+", rows[right.value]))
    for method in ("Status", "Metadata"):
        assert method in rows["any"]


def test_the_sample_of_a_tokens_file_is_one():
    sample = re.search(r"```\n(# name .*?)```", SECURITY, re.S)
    assert sample is not None
    assert [token.name for token in parse_tokens(sample[1], "sample")] == ["app", "ops"]


@pytest.mark.asyncio
async def test_every_metric_of_a_node_is_in_the_table(group, tokens):
    nodes = group(1)
    server = await nodes.start("n0", metricsPort="0", tokensFile=str(tokens))
    await nodes.wait_leader()
    _, page = await fetch(server.metrics_address, "/metrics")
    documented = set(re.findall(r"dledger_\w+", METRICS))
    documented |= {f"dledger{name}" for name in re.findall(r"`(_\w+_index)`", METRICS)}
    there = set(re.findall(r"^# TYPE (\S+)", page, re.M))
    assert there - documented == set()
