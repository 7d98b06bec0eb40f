"""Known ways to get Raft and its disk wrong, as small patches of this project's own source, applied at run time only.

Each must be caught by the simulator. ``scripts/mutants.py`` runs them all and prints the table.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

__all__ = ["CAUGHT_BY", "CONTROL", "MUTANTS", "Mutant", "Patch", "StaleMutantError", "apply", "patched_source"]

ROOT = Path(__file__).resolve().parents[3]


class StaleMutantError(Exception):
    """The source has moved on: a patch does not find its place exactly once."""


@dataclass(frozen=True, slots=True)
class Patch:
    """In ``module``, ``old`` (which must stand there exactly once) becomes ``new``."""

    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """``name`` says what is wrong; ``after`` where somebody got it wrong before."""

    name: str
    patches: tuple[Patch, ...]
    after: str


def patched_source(mutant: Mutant, module: str) -> str:
    """Return the source of ``module`` with the mutant's patches.

    Raises:
        StaleMutantError: a patch no longer fits.
    """
    source = (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
    for patch in mutant.patches:
        if patch.module != module:
            continue
        if source.count(patch.old) != 1:
            raise StaleMutantError(f"{mutant.name}: {source.count(patch.old)} places in {module} for {patch.old!r}")
        source = source.replace(patch.old, patch.new)
    return source


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules of one mutant from patched source."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._modules = {patch.module for patch in mutant.patches}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._modules:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        source = patched_source(self._mutant, module.__name__)
        exec(compile(source, f"<{module.__name__} as {self._mutant.name}>", "exec"), module.__dict__)


def apply(mutant: Mutant) -> None:
    """Make this process run the mutant: to be called before anything of the project is imported.

    Raises:
        StaleMutantError: a module of the mutant is imported already.
    """
    for patch in mutant.patches:
        if patch.module in sys.modules:
            raise StaleMutantError(f"{patch.module} is imported already")
    sys.meta_path.insert(0, _Finder(mutant))


CORE = "dledger.raft.core"
QUORUM = "dledger.raft.quorum"
STORE = "dledger.storage.log_store"
ENTRY = "dledger.storage.entry"
FILES = "dledger.storage.small_files"
RECOVERY = "dledger.storage.recovery"
SESSIONS = "dledger.storage.sessions"
APPENDS = "dledger.driver.appends"
PENDING = "dledger.driver.pending"
DRIVER = "dledger.driver.driver"
DISK = "dledger.driver.disk"
SUMS = "dledger.storage.block_sums"


def _one(name: str, module: str, old: str, new: str, after: str) -> Mutant:
    return Mutant(name, (Patch(module, old, new),), after)


MUTANTS: tuple[Mutant, ...] = (
    # --- term and vote ---
    _one(
        "vote not synced",
        FILES,
        "        fs.pwrite(handle, data, 0)\n        fs.sync(handle)\n",
        "        fs.pwrite(handle, data, 0)\n",
        "PySyncObj #84, DLedger's state file",
    ),
    _one(
        "rename of the vote not synced",
        FILES,
        "    fs.rename(temporary, path)\n    fs.sync_dir(directory)\n",
        "    fs.rename(temporary, path)\n",
        "§5.1; a rename lasts once its folder is synced",
    ),
    _one(
        "messages do not wait for term and vote",
        CORE,
        "        if self._hard_state_durable:\n            self._ready.messages.append",
        "        if True:\n            self._ready.messages.append",
        "hashicorp #661",
    ),
    _one(
        "second vote in a term",
        CORE,
        "        elif self.vote is not None and self.vote != message.sender:\n",
        "        elif False:\n",
        "§5.2",
    ),
    # --- elections ---
    _one(
        "majority off by one",
        QUORUM,
        "len(voters & present) > len(voters) // 2",
        "len(voters & present) >= len(voters) // 2",
        "§5.2, §5.3",
    ),
    _one(
        "commit needs one fewer",
        QUORUM,
        "    return ordered[len(voters) // 2]\n",
        "    return ordered[max(len(voters) // 2 - 1, 0)]\n",
        "§5.2, §5.3",
    ),
    _one(
        "logs compared by length only",
        CORE,
        "        if message.last_log_term < self.log.last_term:\n"
        "            return VoteResult.REJECT_EXPIRED_LEDGER_TERM\n"
        "        if message.last_log_term == self.log.last_term and message.last_log_index",
        "        if message.last_log_index",
        "DLedger #52",
    ),
    _one(
        "logs compared by term only",
        CORE,
        "message.last_log_index < self.log.last_index:\n            return VoteResult.REJECT_SMALL",
        "False:\n            return VoteResult.REJECT_SMALL",
        "§5.4.1",
    ),
    _one(
        "vote floor ignored",
        CORE,
        "        if floor is None or LogId(last_term, last_index) >= floor:\n            return False\n",
        "        return False\n",
        "a wiped node votes as its old self",
    ),
    _one(
        "what forgetful nodes acknowledge counts",
        CORE,
        "        index = committed_index(self.configuration, sworn)\n",
        "        index = committed_index(self.configuration, matches)\n",
        "a leader whose time is over, and a wiped node",
    ),
    _one(
        "forgetful nodes confirm reads",
        CORE,
        "        return has_quorum(self.configuration, sworn)\n",
        "        return has_quorum(self.configuration, acked)\n",
        "a leader whose time is over, and a wiped node",
    ),
    _one(
        "a wiped node takes any leader's word",
        CORE,
        "            caught_up = NO_INDEX < self._caught_up_index <= self._durable_match()\n",
        "            told = self._leader_commit_index\n"
        "            caught_up = NO_INDEX < told <= self._durable_match() and self.log.term_at(told) == self.term\n",
        "a leader whose time is over, and a wiped node",
    ),
    _one(
        "own vote counted before it is durable",
        CORE,
        '        self._event("campaign_started", term=self.term, transfer=transfer)\n',
        '        self._event("campaign_started", term=self.term, transfer=transfer)\n'
        "        self._hard_state_durable = True\n"
        "        self._count_vote(self.node_id, True)\n",
        "§5.1",
    ),
    # --- replication ---
    _one(
        "commit by count alone",
        CORE,
        "        if index <= self.commit_index or self.log.term_at(index) != self.term:\n",
        "        if index <= self.commit_index:\n",
        "figure 8, PySyncObj #110",
    ),
    _one(
        "truncates without a conflict",
        CORE,
        "        conflict = self.log.first_conflict(message.terms, message.last_index)\n",
        "        conflict = message.prev_log_index + 1 if message.prev_log_index < self.log.last_index else None\n",
        "async-raft, WRaft",
    ),
    _one(
        "previous entry not compared",
        CORE,
        "        if previous >= self.commit_index and known_term != message.prev_log_term:\n",
        "        if previous >= self.commit_index and known_term is None:\n",
        "§5.3, consistency check",
    ),
    _one(
        "commit beyond what was compared",
        CORE,
        "        self._follow_commit(min(message.commit_index, message.last_index))\n",
        "        self._follow_commit(min(message.commit_index, self.log.last_index))\n",
        "§5.3",
    ),
    Mutant(
        "heartbeat carries commit beyond the match",
        (
            Patch(
                CORE,
                "        progress.sent_commit = min(progress.match_index, self.commit_index)\n"
                "        progress.last_sent_ms = self._now_ms\n",
                "        progress.sent_commit = self.commit_index\n        progress.last_sent_ms = self._now_ms\n",
            ),
            Patch(
                CORE,
                "min(message.commit_index, max(self._verified_index, self.commit_index))",
                "min(message.commit_index, self.log.last_index)",
            ),
        ),
        "etcd's rule for heartbeats",
    ),
    _one(
        "blocks are good whatever their sums",
        SUMS,
        "and 0 not in found and found == sums[first : first + count]",
        "and len(found) == len(sums[first : first + count])",
        "what is read is verified",
    ),
    _one(
        "an entry alone is good as it stands",
        STORE,
        "!= (index - 1, before_pos) or not is_entry(data, index, pos, before[6]):",
        "!= (index - 1, before_pos):",
        "what is read is verified",
    ),
    _one(
        "bodies that come from a peer are not verified",
        ENTRY,
        "        if _crc(data[at + HEADER_BYTES : at + size]) != body_crc:\n",
        "        if False:\n",
        "what comes is verified",
    ),
    _one(
        "messages of older terms accepted",
        CORE,
        "                self._answer_stale(message)\n                return\n        handler",
        "                pass\n        handler",
        "§5.1",
    ),
    Mutant(
        "late completion vouches for another entry",
        (
            Patch(
                CORE,
                "        if last_index <= self.stable_index or self.log.term_at(last_index) != last_term:\n"
                "            return\n",
                "        if last_index <= self.stable_index:\n            return\n"
                "        last_index = min(last_index, self.log.last_index)\n",
            ),
            # The store says by itself what a completion no longer covers; either guard is enough for this mistake.
            Patch(
                STORE,
                "        if batch.cut_from is not None and batch.last is not None and batch.last.index >= batch.cut_from:\n",
                "        if False:\n",
            ),
        ),
        "Redpanda PR #1762",
    ),
    # --- durability ---
    _one(
        "leader counts itself before its fsync",
        CORE,
        "        matches[self.node_id] = self.stable_index\n",
        "        matches[self.node_id] = self.log.last_index\n",
        "etcd #14370",
    ),
    _one(
        "follower acknowledges before its fsync",
        CORE,
        "        return min(max(self._verified_index, self.commit_index), self.stable_index)\n",
        "        return min(max(self._verified_index, self.commit_index), self.log.last_index)\n",
        "DLedger's flush",
    ),
    _one(
        "group commit without fsync",
        STORE,
        "        if batch.last is not None and self.options.sync_flush:\n            self._data.sync()\n",
        "        if batch.last is not None and self.options.sync_flush:\n",
        "§5.1, §5.3",
    ),
    _one(
        "failed fsync ignored",
        STORE,
        "        except StorageFailedError as error:\n            self._failed = error\n            raise\n\n"
        "    def write_index(",
        "        except StorageFailedError:\n            pass\n\n    def write_index(",
        "ATC'20",
    ),
    _one(
        "clean pages trusted after a failed fsync",
        RECOVERY,
        "        if found.last_index > self._synced_index:\n",
        "        if False:\n",
        "ATC'20; found here",
    ),
    _one(
        "torn tail taken for whole",
        "dledger.storage.entry",
        "        if _crc(data[at + HEADER_BYTES : at + size]) != body_crc:\n"
        '            problem = f"entry {index}: body CRC mismatch"\n            break\n',
        "",
        "etcd #6378",
    ),
    _one(
        "damage taken for a torn tail",
        RECOVERY,
        "    if log.last_index < known:\n",
        "    if False:\n",
        "PAR FAST'18",
    ),
    _one(
        "floor forgotten after a power failure",
        RECOVERY,
        "    if not exact:\n        report.vote_floor = remains.furthest()\n",
        "",
        "the vote floor, docs/divergence.md",
    ),
    _one(
        "watermark not lowered before truncation",
        STORE,
        "        self._watermark.save(operation.from_index - 1, operation.last_term, durable=True)\n",
        "",
        "crash in a truncation looks like damage",
    ),
    # --- sessions ---
    _one(
        "session table not in the checkpoint",
        STORE,
        "runs, self._sessions.base.to_json())",
        'runs, "")',
        "thesis §6.3",
    ),
    _one(
        "session table not rolled back",
        SESSIONS,
        '        """Forget what stood at or after ``from_index`` (which is beyond the base)."""\n',
        '        """Forget nothing."""\n        return\n',
        "a truncated sequence counts as appended",
    ),
    _one(
        "repeated sequences appended again",
        APPENDS,
        "            repeated = sessions.locate(batch.session_id, batch.first_sequence, count)\n",
        "            repeated = []\n",
        "RocketMQ #3210",
    ),
    _one(
        "retries in one proposal appended again",
        APPENDS,
        "        if not repeated or sum([known for _, known in repeated]) < count:\n",
        "        if True:\n",
        "found here",
    ),
    _one(
        "retry acknowledged before it is committed",
        APPENDS,
        "        if all(run.first_index + run.count - 1 <= self._core.commit_index for run in runs):\n",
        "        if True:\n",
        "thesis §6.3",
    ),
    _one(
        "append acknowledged when it is appended",
        APPENDS,
        "        if pending.has_any(commit_index):\n",
        "        commit_index = self._core.last_index\n        if pending.has_any(commit_index):\n",
        "§5.1, §5.3",
    ),
    # --- reads and answers ---
    _one(
        "read without asking a majority",
        CORE,
        "        self._reads.append(read)\n        if not self._round_open:\n            self._start_round()\n",
        "        self._finish_read(read, read.read_index)\n",
        "etcd #20418",
    ),
    _one(
        "read before the first own entry",
        CORE,
        "        if not self.is_leader_ready:\n            # Until",
        "        if False:\n            # Until",
        "thesis §6.4",
    ),
    _one(
        "read joins a round that began before it",
        CORE,
        "_PendingRead(request_id, origin, self.commit_index, self._round + 1)",
        "_PendingRead(request_id, origin, self.commit_index, self._round)",
        "thesis §6.4",
    ),
    _one(
        "read answered before this node has caught up",
        DRIVER,
        "        if index > self.core.commit_index:\n            try:\n",
        "        if False:\n            try:\n",
        "thesis §6.4, at followers",
    ),
    _one(
        "unknown outcome told as definite",
        APPENDS,
        "        self._pending.fail_all(pending_error)\n",
        "        self._pending.fail_all(waiting_error)\n",
        "DLedger's 2023 Jepsen test",
    ),
    # --- liveness ---
    _one(
        "lost probe is never repeated",
        CORE,
        "                progress.probe_sent = False  # the probe",
        "                pass  # the probe",
        "DLedger #331",
    ),
)

CONTROL = _one("control: nothing is wrong", QUORUM, "> len(voters) // 2\n", "> (len(voters) // 2)\n", "")
"""Changes nothing that counts, so nothing may catch it. Only run where it is named."""

CAUGHT_BY: dict[str, int] = {
    "blocks are good whatever their sums": 18,
    "bodies that come from a peer are not verified": 0,
    "an entry alone is good as it stands": 12,
    "vote not synced": 0,
    "rename of the vote not synced": 0,
    "messages do not wait for term and vote": 0,
    "second vote in a term": 4,
    "majority off by one": 2,
    "commit needs one fewer": 0,
    "logs compared by length only": 3,
    "logs compared by term only": 3,
    "vote floor ignored": 13,
    "what forgetful nodes acknowledge counts": 19,
    "forgetful nodes confirm reads": 19,
    "a wiped node takes any leader's word": 3,
    "own vote counted before it is durable": 0,
    "commit by count alone": 1,
    "truncates without a conflict": 0,
    "previous entry not compared": 1,
    "commit beyond what was compared": 1,
    "heartbeat carries commit beyond the match": 1,
    "messages of older terms accepted": 0,
    "late completion vouches for another entry": 24,
    "leader counts itself before its fsync": 17,
    "follower acknowledges before its fsync": 0,
    "group commit without fsync": 0,
    "failed fsync ignored": 4,
    "clean pages trusted after a failed fsync": 4,
    "torn tail taken for whole": 0,
    "damage taken for a torn tail": 18,
    "floor forgotten after a power failure": 1,
    "watermark not lowered before truncation": 50,
    "session table not in the checkpoint": 0,
    "session table not rolled back": 1,
    "repeated sequences appended again": 0,
    "retries in one proposal appended again": 6,
    "retry acknowledged before it is committed": 0,
    "append acknowledged when it is appended": 0,
    "read without asking a majority": 1,
    "read before the first own entry": 3,
    "read joins a round that began before it": 3,
    "read answered before this node has caught up": 1,
    "unknown outcome told as definite": 2,
    "lost probe is never repeated": 7,
}
"""Mutant → the first seed that catches it, as ``scripts/mutants.py --full`` found it; only a hint where to look first."""
