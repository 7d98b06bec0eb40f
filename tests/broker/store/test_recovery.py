"""Crashes: torn tails at every kind of place, derived files lost or stale, and a rebuild that equals the original."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from broker_adapter.message import Message
from broker_adapter.store.api import BrokerRole, StoreConfig
from broker_adapter.store.checkpoint import LogicCheckpoint
from dledger.errors import StorageFailedError
from tests.broker.format_reader import read_commit_log
from tests.broker.store.helpers import (
    batch,
    check_files,
    consume,
    crash_image,
    eventually,
    fill,
    message,
    opened,
    store_config,
)

pytestmark = pytest.mark.asyncio


def derived(root: Path) -> dict[str, bytes]:
    """All consume queue and index files by name."""
    paths = [*(root / "consumequeue").rglob("*"), *(root / "index").rglob("*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


async def reopen_and_check(config: StoreConfig) -> list[int]:
    """Open, go on writing, close; every file must be right. Returns the flags found before writing went on."""
    store = await opened(config)
    before: list[int] = []
    for queue in range(3):
        before += [m.flag for m in await consume(store, "Topic", queue)]
    await fill(store, 20, first=5000)
    await store.stop()
    check_files(Path(config.store_path_root_dir))
    return sorted(before)


async def test_after_kill_everything_written_is_there(tmp_path: Path) -> None:
    """A copy of the folder of a running store, checkpoint far behind: log, queues and index are complete again."""
    config = store_config(tmp_path / "a")
    store = await opened(config)
    await fill(store, 150)
    await store._checkpoint()
    await fill(store, 150, 150)
    image = crash_image(config, tmp_path / "b")
    await store.stop()
    assert (tmp_path / "b" / "abort").exists()
    assert await reopen_and_check(image) == list(range(300))


@pytest.mark.parametrize("checkpointed", [0, 40, 120])
async def test_log_cut_at_many_places(tmp_path: Path, checkpointed: int) -> None:
    """The last file cut at places all over it, before and behind the checkpoint: whole messages before it stay."""
    config = store_config(tmp_path / "a")
    store = await opened(config)
    await fill(store, checkpointed)
    if checkpointed:
        await store._checkpoint()
    await fill(store, 120 - checkpointed, checkpointed)
    image = crash_image(config, tmp_path / "image")
    await store.stop()
    messages = read_commit_log(tmp_path / "image" / "commitlog")
    last = sorted((tmp_path / "image" / "commitlog").iterdir())[-1]
    start = int(last.name)
    ends = [m.physical + m.size for m in messages]
    cuts = {start + 1, start + 7, start + 50, ends[-1] - 1, ends[-1] - 30, ends[-2], ends[-2] + 4, ends[-3] + 40}
    cuts |= set(range(start, ends[-1], 997))
    for number, cut in enumerate(sorted(cuts)):
        target = tmp_path / f"cut{number}"
        shutil.copytree(image.store_path_root_dir, target)
        os.truncate(target / "commitlog" / last.name, cut - start)
        expected = [m.flag for m, end in zip(messages, ends, strict=True) if end <= cut]
        assert await reopen_and_check(store_config(target)) == expected, f"cut at {cut}"
        shutil.rmtree(target)


async def test_torn_write_with_garbage_behind(tmp_path: Path) -> None:
    """A flipped byte in a message behind the checkpoint: it and all behind it go, and no stale byte comes back."""
    config = store_config(tmp_path / "a")
    store = await opened(config)
    # Equal sizes on purpose: what stands behind a torn message would line up with what is written next.
    for _ in range(20):
        await store.put_message(Message("Topic", b"x" * 100, flag=1))
    image = crash_image(config, tmp_path / "b")
    await store.stop()
    messages = read_commit_log(tmp_path / "b" / "commitlog")
    path = tmp_path / "b" / "commitlog" / f"{0:020d}"
    data = bytearray(path.read_bytes())
    data[messages[10].physical + 90] ^= 1
    path.write_bytes(data)
    again = await opened(image)
    assert again.max_offset("Topic", 0) == 10
    await again.put_message(Message("Topic", b"y" * 100, flag=1))
    second = crash_image(image, tmp_path / "c")
    await again.stop()
    third = await opened(second)
    assert [m.body[:1] for m in await consume(third, "Topic", 0)] == [b"x"] * 10 + [b"y"]
    await third.stop()
    check_files(tmp_path / "c")


@pytest.mark.parametrize("lost", ["consumequeue", "index", "logicCheckpoint", "one queue file", "both", "all"])
async def test_lost_derived_files_are_made_anew_and_equal_the_original(tmp_path: Path, lost: str) -> None:
    config = store_config(tmp_path / "a")
    store = await opened(config)
    await fill(store, 200)
    await store.put_messages(batch(range(200, 230)))
    await store.stop()
    original = derived(tmp_path / "a")
    root = tmp_path / "b"
    shutil.copytree(tmp_path / "a", root)
    if lost in {"consumequeue", "both", "all"}:
        shutil.rmtree(root / "consumequeue")
    if lost in {"index", "both", "all"}:
        shutil.rmtree(root / "index")
    if lost in {"logicCheckpoint", "all"}:
        (root / "logicCheckpoint").unlink()
    if lost == "one queue file":
        sorted((root / "consumequeue" / "Topic" / "1").iterdir())[-1].unlink()
    again = await opened(store_config(root))
    await again.stop()
    assert derived(root) == original
    check_files(root)


async def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    config = store_config(tmp_path / "a")
    store = await opened(config)
    await fill(store, 50)
    await store.stop()
    original = derived(tmp_path / "a")
    path = tmp_path / "a" / "logicCheckpoint"
    whole = path.read_bytes()
    for broken in (whole[:-5], whole[:20], b"", b"00000000\n{}", whole.replace(b"Topic", b"Tipoc")):
        path.write_bytes(broken)
        assert LogicCheckpoint.load(str(path)) is None
        again = await opened(config)
        await again.stop()
        assert derived(tmp_path / "a") == original


async def test_power_failure_leaves_no_hole_in_queue_or_index(tmp_path: Path) -> None:
    """Pages of the derived files written after the checkpoint are lost (zeros) or garbage; another boot of the machine."""
    config = store_config(tmp_path / "a")
    store = await opened(config)
    await fill(store, 60)
    await store._checkpoint()
    checkpoint = LogicCheckpoint.load(str(tmp_path / "a" / "logicCheckpoint"))
    assert checkpoint is not None
    await fill(store, 60, 60)
    image = crash_image(config, tmp_path / "b")
    await store.stop()
    for queue_id, end in checkpoint.queues["Topic"].items():
        for path in (tmp_path / "b" / "consumequeue" / "Topic" / queue_id).iterdir():
            data = bytearray(path.read_bytes())
            keep = max(0, min(len(data), end * 20 - int(path.name)))
            data[keep:] = (b"\xa5" * 40 + bytes(60)) * (len(data) // 100 + 1)
            path.write_bytes(bytes(data[: 50 * 20]))
    index = sorted((tmp_path / "b" / "index").iterdir())[0]
    data = bytearray(index.read_bytes())
    data[40 : 40 + 64 * 4] = (b"\0\0\0\7" + b"\xff" * 4) * 32  # slots of any time
    index.write_bytes(data)
    checkpoint.boot = "another boot"
    (tmp_path / "b" / "logicCheckpoint").write_bytes(checkpoint.encode())
    assert await reopen_and_check(image) == list(range(120))


async def test_queues_that_point_beyond_the_log_are_cut(tmp_path: Path) -> None:
    """The log lost its tail though the queues had it (ASYNC_FLUSH and a power failure)."""
    config = store_config(tmp_path / "a")
    store = await opened(config)
    await fill(store, 100)
    await store.stop()
    messages = read_commit_log(tmp_path / "a" / "commitlog")
    file = config.mapped_file_size_commit_log
    cut = messages[60].physical
    for path in sorted((tmp_path / "a" / "commitlog").iterdir()):
        if int(path.name) > cut:
            path.unlink()
        elif int(path.name) == cut - cut % file:
            os.truncate(path, cut % file)
    assert await reopen_and_check(config) == list(range(60))


async def test_crash_again_and_again(tmp_path: Path) -> None:
    """Ten lives, each killed at some point: nothing is lost, doubled or out of order."""
    config = store_config(tmp_path / "life0")
    written = 0
    for life in range(1, 11):
        store = await opened(config)
        await fill(store, 23, written)
        if life % 3 == 0:
            await store._checkpoint()
        await fill(store, 14, written + 23)
        written += 37
        config_next = crash_image(config, tmp_path / f"life{life}")
        await store.stop()
        config = config_next
    store = await opened(config)
    for queue in range(3):
        found = await consume(store, "Topic", queue)
        assert [m.flag for m in found] == [n for n in range(written) if n % 3 == queue]
        assert [m.queue_offset for m in found] == list(range(len(found)))
    await store.stop()
    check_files(Path(config.store_path_root_dir))


async def test_a_store_without_our_checkpoint_is_taken_over(tmp_path: Path) -> None:
    """Upstream's folder has no logicCheckpoint, and queues of its own: they are made anew from the log."""
    config = store_config(tmp_path / "a")
    store = await opened(config)
    await fill(store, 80)
    await store.stop()
    (tmp_path / "a" / "logicCheckpoint").unlink()
    (tmp_path / "a" / "consumequeue" / "Stale" / "0").mkdir(parents=True)
    (tmp_path / "a" / "consumequeue" / "Stale" / "0" / f"{0:020d}").write_bytes(bytes(1000))
    assert await reopen_and_check(config) == list(range(80))
    assert not (tmp_path / "a" / "consumequeue" / "Stale").exists()


async def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = store_config(tmp_path / "a")
    store = await opened(config)
    await fill(store, 300)
    await store.stop()
    files = sorted((tmp_path / "a" / "commitlog").iterdir())
    with pytest.raises(StorageFailedError, match="another file size"):
        await opened(store_config(tmp_path / "a", mapped_file_size_commit_log=24 * 1024))
    moved = tmp_path / "moved"
    files[1].rename(moved)
    with pytest.raises(StorageFailedError, match="missing"):
        await opened(config)
    moved.rename(files[1])
    os.truncate(files[0], config.mapped_file_size_commit_log + 1)
    with pytest.raises(StorageFailedError, match="expected"):
        await opened(config)


async def test_a_promoted_slave_drops_half_a_message(tmp_path: Path) -> None:
    """A slave's log may end within a message when its master dies: a promoted one goes on behind the last whole one."""
    master = await opened(store_config(tmp_path / "m"))
    await fill(master, 10)
    data = master.commit_log.read(0, master.max_physical_offset, now=False)
    await master.stop()
    slave = await opened(store_config(tmp_path / "s", broker_role=BrokerRole.SLAVE))
    slave.append_replicated(0, data[:-11])
    slave.replicated()
    assert slave.dispatch_behind_bytes() > 0
    slave.set_role(BrokerRole.ASYNC_MASTER)
    assert slave.dispatch_behind_bytes() == 0
    result = await slave.put_message(message(9))
    assert (result.queue_offset, result.physical_offset) == (3, len(data) - result.byte_count)
    await slave.stop()
    assert [m.flag for m in check_files(tmp_path / "s")] == list(range(10))


async def test_checkpoints_come_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_adapter.store.local_store._CHECKPOINT_BYTES", 1000)
    store = await opened(store_config(tmp_path, flush_interval_consume_queue_ms=5))
    await fill(store, 20)
    await eventually(lambda: store._checkpoint_physical == store.max_physical_offset)
    checkpoint = LogicCheckpoint.load(str(tmp_path / "logicCheckpoint"))
    assert checkpoint is not None
    assert checkpoint.physical == store.max_physical_offset
    await asyncio.sleep(0)
    await store.stop()
