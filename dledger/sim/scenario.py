"""What one seed stands for: the size of the group, its limits, and which faults it will see.

Each seed switches every kind of fault on or off by itself (swarm testing): a run with few kinds goes deeper into them
than one with all. Limits are drawn small, so that segments end, windows fill, caches miss and checkpoints happen often.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from dledger.config import DLedgerConfig, Peer
from dledger.sim.disk import DiskTimes
from dledger.sim.network import LinkOptions
from dledger.storage.log_store import StoreOptions

__all__ = ["FAULTS", "GROUP", "Scenario", "draw_scenario", "node_config"]

GROUP = "sim"

FAULTS: dict[str, float] = {
    "kill": 3.0,
    "kill_leader": 3.0,
    "power_failure": 3.0,
    "crash_in_write": 3.0,
    "all_killed": 0.4,
    "all_power_failure": 0.6,
    "restart": 1.0,
    "rolling_restart": 0.3,
    "pause": 2.0,
    "pause_leader": 2.0,
    "usurp": 2.0,
    "orphan": 2.0,
    "isolate": 2.0,
    "isolate_leader": 2.0,
    "split": 1.0,
    "one_way": 2.0,
    "bridge": 1.0,
    "clog": 1.5,
    "false_disconnect": 2.0,
    "rough_network": 2.0,
    "transfer": 2.0,
    "step_down": 0.5,
    "disk_stall": 2.0,
    "disk_full": 0.7,
    "sync_error": 0.7,
    "evict": 1.0,
    "bit_flip": 0.7,
    "silent_drop": 0.5,
    "misdirect": 0.5,
    "wipe": 1.0,
    "wall_clock": 0.5,
    "late_answers": 3.0,
    "torn_write": 2.0,
    "slow_truncation": 2.0,
    "rotten_tail": 1.0,
    "amnesia": 2.0,
}
"""Kind of fault → how often it comes, relative to the others."""

_OWN_DRAW = frozenset({"late_answers", "torn_write", "slow_truncation", "rotten_tail", "amnesia"})
"""Added later and drawn from a source of their own: without them a seed stays the run that it was."""


@dataclass(slots=True)
class Scenario:
    """Everything that is fixed before a run begins. Times in virtual seconds."""

    seed: int
    node_ids: tuple[str, ...]
    shuffle: bool
    calm: LinkOptions
    rough: LinkOptions
    disk: DiskTimes
    store: StoreOptions
    settings: dict[str, object]
    faults: dict[str, float]
    fault_interval_s: float
    frail: tuple[str, ...]
    """Nodes that may suffer damage at rest, a minority: every committed entry keeps a good copy elsewhere."""
    pipelines: int
    sessions: int
    loose: int
    readers: int
    think_s: float
    duration_s: float = 58.0
    liveness_s: float = 40.0
    members: dict[str, str] = field(default_factory=dict)


def _links(rng: Random, *, rough: bool) -> LinkOptions:
    low = rng.choice([0.0001, 0.0005, 0.002])
    options = LinkOptions(
        delay_min_s=low,
        delay_max_s=low * rng.choice([2, 5, 20]),
        ordered=rng.random() < 0.5,
        codec=False,
    )
    if rough:
        options.loss = rng.choice([0.0, 0.01, 0.1, 0.3])
        options.duplicate = rng.choice([0.0, 0.05, 0.5])
        options.slow_share = rng.choice([0.0, 0.02, 0.2])
        options.slow_max_s = rng.choice([0.02, 0.1, 1.0])
        options.ordered = rng.random() < 0.2
    return options


def draw_scenario(seed: int, *, duration_s: float = 58.0) -> Scenario:
    """Return what ``seed`` stands for; a pure function."""
    rng = Random(f"scenario {seed}")
    count = rng.choices([3, 5, 1], [16, 5, 0.4])[0]
    node_ids = tuple(f"n{i}" for i in range(count))
    election_ms = rng.choice([300, 600, 1000])
    calm, rough = _links(rng, rough=False), _links(rng, rough=True)
    calm.codec = rough.codec = rng.random() < 0.25
    damage = Random(f"damage {seed}")  # (as for `_OWN_DRAW`)
    if damage.random() < 0.3:
        rough.damage = damage.choice([0.01, 0.1])
    calm.survive_restart = rough.survive_restart = rng.random() < 0.3
    faults = {
        name: weight
        for name, weight in FAULTS.items()
        if (Random(f"{name} {seed}") if name in _OWN_DRAW else rng).random() < 0.45
    }
    if rng.random() < 0.05:
        faults = {}
    segment = rng.choice([4096, 16384, 65536])
    settings: dict[str, object] = {
        "election_timeout_ms": election_ms,
        "heartbeat_interval_ms": election_ms // rng.choice([4, 6]),
        "lost_leader_min_ms": 10,
        "lost_leader_max_ms": rng.choice([20, 60]),
        "max_wait_ack_time_ms": rng.choice([300, 2500]),
        "max_inflight_count": rng.choice([1, 4, 64]),
        "max_append_bytes": rng.choice([1024, 4096, 65536]),
        "max_entry_bytes": segment // 2,
        "max_pending_requests_num": rng.choice([20, 100_000]),
    }
    if rng.random() < 0.2:
        settings["preferred_leader_ids"] = (rng.choice(node_ids),)
    return Scenario(
        seed=seed,
        node_ids=node_ids,
        shuffle=rng.random() < 0.75,
        calm=calm,
        rough=rough,
        disk=DiskTimes(
            usual_s=rng.choice([0.0002, 0.001, 0.005]),
            slow_share=rng.choice([0.0, 0.01, 0.1]),
            slow_s=rng.choice([0.02, 0.3]),
        ),
        store=StoreOptions(
            data_segment_bytes=segment,
            index_segment_bytes=rng.choice([1024, 8192]),
            sync_flush=True,
            checkpoint_bytes=rng.choice([2048, 16384, 1 << 20]),
            prepare_bytes=rng.choice([512, 4096]),
            cache_bytes=rng.choice([0, 4096, 65536]),
            sum_block_bytes=segment // 64,
        ),
        settings=settings,
        faults=faults,
        fault_interval_s=rng.choice([0.3, 1.0, 3.0]),
        frail=tuple(rng.sample(node_ids, (count - 1) // 2)),
        pipelines=rng.choice([0, 1, 2]),
        sessions=rng.choice([1, 2, 3]),
        loose=rng.choice([0, 1, 1]),
        readers=rng.choice([1, 2]),
        think_s=rng.choice([0.3, 0.8, 2.4]),
        duration_s=duration_s,
        members={node_id: f"{node_id}.sim:1" for node_id in node_ids},
    )


def node_config(scenario: Scenario, node_id: str) -> DLedgerConfig:
    """Return the configuration of one node."""
    peers = tuple(Peer(member, f"{member}.sim", 1) for member in scenario.node_ids)
    values: dict[str, object] = {
        "group": GROUP,
        "self_id": node_id,
        "peers": peers,
        "store_path_root_dir": "/sim",
        **scenario.settings,
    }
    return DLedgerConfig(**values)  # type: ignore[arg-type]  # checked by the configuration itself
