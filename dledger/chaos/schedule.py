"""Which fault when: drawn from one seed before the run begins. Pure.

A schedule names roles, not nodes ("the leader"): who leads when the fault's time comes is not known in advance, and a
fault that hits the leader is worth more than one that hits whoever was drawn. What else is left to chance is drawn
here, so a seed replays the same sequence of faults; the processes' own timing is not replayed.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["FOREIGN_FAULTS", "Action", "Fault", "Step", "Way", "make_schedule", "parse_faults"]


class Fault(enum.Enum):
    """Kinds of fault, by the names that ``--faults`` takes."""

    KILL = "kill"
    """SIGKILL, and a restart on the old folder."""
    PAUSE = "pause"
    """SIGSTOP and SIGCONT."""
    PARTITION = "partition"
    """Links cut: both ways, one way, triangle, halves."""
    DELAY = "delay"
    """Links slowed."""
    SLOW_DISK = "slow-disk"
    """Every sync takes longer."""
    DISK_FULL = "disk-full"
    """Writes fail with ENOSPC, the first one in the middle."""
    FSYNC_ERROR = "fsync-error"
    """Every sync fails with EIO: the node must stop, and is restarted on a sound disk."""
    RETRY = "retry"
    """Answers to clients are lost and their connections reset: everything in flight is sent again."""
    TRANSFER = "transfer"
    """Leadership is handed to another node."""

    @property
    def of_disk(self) -> bool:
        return self in _DISK


_DISK: Final = frozenset({Fault.SLOW_DISK, Fault.DISK_FULL, Fault.FSYNC_ERROR})

FOREIGN_FAULTS: Final = frozenset({Fault.RETRY, Fault.TRANSFER})
"""What may be done to a group that somebody else started: nothing that signals a process or needs our proxies."""


class Way(enum.Enum):
    """How a link is cut."""

    HELD = "silently, bytes delivered late"
    LOST = "silently, bytes lost"
    REFUSED = "connections reset"


@dataclass(frozen=True, slots=True)
class Action:
    """One fault. ``variant``: whom or what it hits; ``draw`` chooses where a choice is left; ``amount_s``: a delay."""

    fault: Fault
    variant: str
    hold_s: float
    draw: int
    way: Way = Way.HELD
    amount_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that begin together, ``at_s`` seconds after the first client's first call."""

    at_s: float
    actions: tuple[Action, ...]


_VARIANTS: Final[Mapping[Fault, Mapping[str, int]]] = {
    Fault.KILL: {"leader": 6, "follower": 3, "majority": 1, "all": 1},
    Fault.PAUSE: {"leader": 3, "follower": 2},
    Fault.PARTITION: {
        "leader cut off": 3,
        "follower cut off": 2,
        "leader hears nothing": 2,
        "nobody hears the leader": 2,
        "triangle with the leader": 2,
        "triangle of followers": 1,
        "leader in the minority": 2,
    },
    Fault.DELAY: {"one link": 1, "leader": 1, "all links": 1},
    Fault.SLOW_DISK: {"leader": 2, "follower": 2, "all": 1},
    Fault.DISK_FULL: {"leader": 2, "follower": 1},
    Fault.FSYNC_ERROR: {"leader": 2, "follower": 1},
    Fault.RETRY: {"all": 1},
    Fault.TRANSFER: {"any": 1},
}
"""Fault → variants and how often each is drawn."""

_HOLD_S: Final[Mapping[Fault, tuple[float, float]]] = {
    Fault.KILL: (0.1, 1.2),
    Fault.PAUSE: (0.1, 2.5),
    Fault.PARTITION: (0.3, 3.0),
    Fault.DELAY: (0.5, 2.0),
    Fault.SLOW_DISK: (0.5, 2.0),
    Fault.DISK_FULL: (0.5, 2.5),
    Fault.FSYNC_ERROR: (1.0, 1.5),
    Fault.RETRY: (0.05, 0.3),
    Fault.TRANSFER: (0.0, 0.0),
}
"""How long each lasts, in seconds."""

_AMOUNT_S: Final[Mapping[Fault, tuple[float, float]]] = {Fault.DELAY: (0.005, 0.15), Fault.SLOW_DISK: (0.01, 0.3)}

_CALM_S: Final = (0.4, 1.2)
"""Time between the end of a step and the beginning of the next."""

_DOUBLE_SHARE: Final = 0.2
"""How often two faults of different kinds begin together."""

_WARM_UP_S: Final = 0.5

_FAMILIES: Final = (frozenset({Fault.PARTITION, Fault.DELAY}), _DISK)
"""Faults that undo each other's settings, so that they do not go together."""


def parse_faults(text: str) -> list[Fault]:
    """Return the kinds in ``kill,pause,…``; ``all`` is every kind.

    Raises:
        ValueError: a name is none of them; says which there are.
    """
    found: list[Fault] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name == "all":
            found.extend(Fault)
            continue
        try:
            found.append(Fault(name))
        except ValueError:
            raise ValueError(f'"{name}" is no fault; there are {", ".join(f.value for f in Fault)}, all') from None
    if not found:
        raise ValueError("no fault given")
    return list(dict.fromkeys(found))


def make_schedule(seed: int, duration_s: float, faults: Iterable[Fault], *, nodes: int = 3) -> list[Step]:
    """Return the steps of a run of ``duration_s`` seconds; the same for the same arguments.

    Every kind comes before one comes again, in an order that is drawn. The last step ends before the run does.
    """
    kinds = list(dict.fromkeys(faults))
    rng = random.Random(f"chaos {seed} {nodes} {','.join(kind.value for kind in kinds)}")
    steps: list[Step] = []
    bag: list[Fault] = []
    at = _WARM_UP_S
    while kinds:
        if not bag:
            bag = rng.sample(kinds, len(kinds))
        actions = [_draw(rng, bag.pop())]
        double = rng.random() < _DOUBLE_SHARE
        if double and bag and not any({actions[0].fault, bag[-1]} <= family for family in _FAMILIES):
            actions.append(_draw(rng, bag.pop()))
        end = at + max(action.hold_s for action in actions)
        if end > duration_s:
            break
        steps.append(Step(round(at, 3), tuple(actions)))
        at = end + rng.uniform(*_CALM_S)
    return steps


def _draw(rng: random.Random, fault: Fault) -> Action:
    variants = _VARIANTS[fault]
    amount = rng.uniform(*_AMOUNT_S[fault]) if fault in _AMOUNT_S else 0.0
    return Action(
        fault,
        rng.choices(list(variants), list(variants.values()))[0],
        round(rng.uniform(*_HOLD_S[fault]), 3),
        rng.getrandbits(32),
        rng.choice(list(Way)),
        round(amount, 4),
    )
