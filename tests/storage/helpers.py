"""Small logs to break: a store on either file system, filled with known entries."""

from __future__ import annotations

from dledger.raft.messages import EntryType, HardState
from dledger.storage.entry import EntryGroup, iter_entries
from dledger.storage.log_store import LogStore, StoreOptions

OPTIONS = StoreOptions(
    data_segment_bytes=4096,
    index_segment_bytes=1024,
    checkpoint_bytes=1 << 40,
    prepare_bytes=1024,
    cache_bytes=1 << 20,
)


def open_store(fs, directory, options=OPTIONS, **identity) -> LogStore:
    return LogStore.open(fs, str(directory), group="g", node_id="n0", options=options, **identity)


def flush(store: LogStore) -> None:
    """Write everything staged, as the disk loop does."""
    while (batch := store.take_batch()) is not None:
        store.write(batch)
        store.complete(batch)


def append(store: LogStore, bodies, term=1, channel=0, kind=EntryType.NORMAL) -> None:
    store.append(store.encode(term, [EntryGroup(kind, channel, bodies)]))


def fill(store: LogStore, count: int, size: int = 40, term: int = 1, per_write: int = 5) -> list[bytes]:
    """Append ``count`` entries, every ``per_write`` of them synced together."""
    bodies = [b"%06d" % n + bytes([n % 250 + 1]) * (size - 6) for n in range(count)]
    for at in range(0, count, per_write):
        append(store, bodies[at : at + per_write], term)
        flush(store)
    return bodies


def bodies_of(store: LogStore) -> list[bytes]:
    """Read the whole log back from the disk."""
    found = []
    index = store.first_index
    while index <= store.last_index:
        raw = store.read(index, store.last_index, 1 << 20)
        found.extend(entry.body for entry in iter_entries(raw.data))
        index = raw.last_index + 1
    return found


def vote(store: LogStore, term: int, candidate: str | None = None) -> None:
    store.save_hard_state(HardState(term, candidate, store.hard_state.vote_floor))
    flush(store)
