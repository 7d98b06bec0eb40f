"""What nodes tell of themselves, as plain sentences. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["MINOR", "sentence"]

_Facts = Mapping[str, str]

MINOR: Final = frozenset({"term_raised", "role_changed", "pre_vote_started", "transfer_received", "vote_floor_cleared"})
"""Names of events that are interesting only to those who look closely."""


def _entries(count: str) -> str:
    return f"{count} entry" if count == "1" else f"{count} entries"


def _campaign(node: str, facts: _Facts) -> str:
    why = ", asked to take over" if facts.get("transfer") == "True" else ""
    return f"{node} stands for election in term {facts['term']}{why}"


_SENTENCES: Final[Mapping[str, Callable[[str, _Facts], str]]] = {
    "voted": lambda node, facts: f"{node} voted for {facts['candidate']} in term {facts['term']}",
    "pre_vote_started": lambda node, facts: f"{node} asks whether it would be elected in term {facts['term']}",
    "campaign_started": _campaign,
    "elected": lambda node, facts: f"{node} was elected leader of term {facts['term']}",
    "leader_ready": lambda node, facts: (
        f"{node} leads: the first entry of term {facts['term']} is committed at index {facts['commit_index']}"
    ),
    "follows": lambda node, facts: f"{node} follows {facts['leader']} in term {facts['term']}",
    "truncated": lambda node, facts: (
        f"{node} cut {_entries(facts['entries'])} that had not been committed, from index {facts['from_index']} on"
    ),
    "leader_connection_lost": lambda node, facts: f"{node} lost its connection to the leader {facts['leader']}",
    "election_lost": lambda node, facts: f"{node} did not win the election in term {facts['term']}",
    "stepped_down": lambda node, facts: f"{node} stepped down: {facts['reason']}",
    "term_raised": lambda node, facts: f"{node} heard of term {facts['term']} from {facts['by']}",
    "role_changed": lambda node, facts: f"{node} is {facts['role'].replace('_', '-')} in term {facts['term']}",
    "transfer_started": lambda node, facts: f"{node} hands leadership to {facts['target']}",
    "transfer_received": lambda node, facts: f"{node} is asked by {facts['leader']} to take over",
    "transfer_given_up": lambda node, facts: f"{node} gave up handing leadership to {facts['target']}",
    "vote_floor_cleared": lambda node, _: f"{node} holds all that was committed: its vote counts in full",
    "peer_lost_entries": lambda node, facts: (
        f"{node} noticed that {facts['peer']} has lost entries: it had {facts['had']} and has {facts['has']}"
    ),
    "prefers_another_leader": lambda node, facts: f"{node} would rather have {facts['target']} lead",
}


def sentence(node: str, name: str, facts: _Facts) -> str:
    """Return an event of ``node`` as a sentence; one that is not known here is told by its name and facts."""
    known = _SENTENCES.get(name)
    if known is not None:
        try:
            return known(node, facts)
        except KeyError:
            pass  # a node of another version: its facts have other names
    details = ", ".join(f"{key} {value}" for key, value in facts.items())
    return f"{node}: {name.replace('_', ' ')}" + (f" ({details})" if details else "")
