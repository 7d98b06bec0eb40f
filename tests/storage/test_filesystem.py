"""Both file systems keep one contract; the real one's errors are told apart; the one in memory forgets as told."""

from __future__ import annotations

import errno
import os

import pytest

from dledger.errors import DiskFullError, StorageFailedError, StoreLockedError
from dledger.storage.filesystem import RealFileSystem
from dledger.storage.memory_filesystem import MemoryFileSystem


def test_bytes_are_where_they_were_written(fs, folder):
    """Sparse before, between and behind; many buffers at once; nothing beyond the end."""
    fs.makedirs(folder)
    handle = fs.open(f"{folder}/file", create=True)
    fs.resize(handle, 100_000)
    buffers = [bytes([n % 251]) * (n % 7) for n in range(5_000)]
    fs.pwritev(handle, buffers, 4090)
    whole = b"".join(buffers)
    assert fs.pread(handle, len(whole), 4090) == whole
    assert fs.pread(handle, 4090, 0) == bytes(4090)
    assert fs.pread(handle, 10, 99_995) == bytes(5)
    assert fs.size(handle) == 100_000
    fs.zero(handle, 5000, 3000)
    assert fs.pread(handle, 3002, 4999) == whole[909:910] + bytes(3000) + whole[3910:3911]
    assert 4090 + len(whole) <= fs.data_end(handle) <= 100_000
    fs.resize(handle, 4100)
    fs.resize(handle, 8200)
    assert fs.pread(handle, 8200, 4090) == whole[:10] + bytes(4100)
    fs.close(handle)


def test_names_are_listed_renamed_and_removed(fs, folder):
    fs.makedirs(f"{folder}/a/b")
    for name in ("two", "one"):
        fs.close(fs.open(f"{folder}/{name}", create=True))
    assert fs.listdir(folder) == ["a", "one", "two"]
    fs.rename(f"{folder}/one", f"{folder}/two")
    assert fs.listdir(folder) == ["a", "two"]
    fs.unlink(f"{folder}/two")
    assert (fs.exists(f"{folder}/two"), fs.exists(folder)) == (False, True)
    assert fs.listdir(f"{folder}/nowhere") == []
    for call in (lambda: fs.open(f"{folder}/no"), lambda: fs.unlink(f"{folder}/no")):
        with pytest.raises(StorageFailedError, match="/no"):
            call()


def test_a_lock_is_held_by_one_until_it_is_closed(fs, folder):
    fs.makedirs(folder)
    handle = fs.lock(f"{folder}/lock")
    with pytest.raises(StoreLockedError, match="in use"):
        fs.lock(f"{folder}/lock")
    fs.close(handle)
    fs.close(fs.lock(f"{folder}/lock"))


def test_the_lock_names_its_holder(tmp_path):
    fs = RealFileSystem()
    handle = fs.lock(str(tmp_path / "lock"))
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()}"):
        fs.lock(str(tmp_path / "lock"))
    fs.close(handle)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_space_is_told_apart_when_writing_but_never_when_syncing(tmp_path, monkeypatch, number):
    """A write may be repeated; after a failed sync, for want of space too, the pages may be gone."""
    fs = RealFileSystem()
    handle = fs.open(str(tmp_path / "file"), create=True)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    for name in ("pwritev", "fdatasync", "ftruncate"):
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(DiskFullError, match="file"):
        fs.pwrite(handle, b"x", 0)
    with pytest.raises(DiskFullError):
        fs.resize(handle, 10)
    with pytest.raises(StorageFailedError, match=r"fdatasync .*file"):
        fs.sync(handle)
    monkeypatch.undo()
    fs.close(handle)


def test_other_errors_are_final(tmp_path, monkeypatch):
    fs = RealFileSystem()
    handle = fs.open(str(tmp_path / "file"), create=True)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(StorageFailedError, match=r"write .*file"):
        fs.pwrite(handle, b"x", 0)
    monkeypatch.undo()
    fs.close(handle)


def test_what_nobody_will_read_is_written_all_the_same(fs, folder):
    fs.makedirs(folder)
    handle = fs.open(f"{folder}/file", create=True)
    fs.pwritev(handle, [b"ab", b"cd"], 5000, keep=False)
    fs.sync(handle)
    assert fs.pread(handle, 10, 4998) == bytes(2) + b"abcd"
    fs.close(handle)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_where_the_kernel_cannot_give_pages_back_it_is_asked_once(tmp_path, monkeypatch, code):
    fs = RealFileSystem()
    handle = fs.open(str(tmp_path / "file"), create=True)
    real, flags = os.pwritev, []

    def old_kernel(fd, buffers, offset, flag=0):
        flags.append(flag)
        if flag:
            raise OSError(code, os.strerror(code))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", old_kernel)
    fs.pwritev(handle, [b"abc"], 0, keep=False)
    fs.pwritev(handle, [b"def"], 3, keep=False)
    monkeypatch.undo()
    assert [bool(flag) for flag in flags] == [True, False, False]
    assert fs.pread(handle, 10, 0) == b"abcdef"
    fs.close(handle)


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, DiskFullError), (errno.EIO, StorageFailedError)])
def test_failures_of_such_a_write_are_those_of_any_other(tmp_path, monkeypatch, code, error):
    fs = RealFileSystem()
    handle = fs.open(str(tmp_path / "file"), create=True)

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(error, match=r"write .*file"):
        fs.pwritev(handle, [b"abc"], 0, keep=False)
    monkeypatch.undo()
    fs.close(handle)


def test_short_writes_are_finished(tmp_path, monkeypatch):
    """The kernel may write less than asked; the rest follows where it belongs."""
    fs = RealFileSystem()
    handle = fs.open(str(tmp_path / "file"), create=True)
    real_write, real_pwrite = os.pwritev, os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, data, at: real_write(fd, [b"".join(data)[:7]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real_pwrite(fd, bytes(data)[:3], at))
    fs.pwritev(handle, [b"abcde", b"fghij", b"klmno"], 4)
    monkeypatch.undo()
    assert fs.pread(handle, 100, 0) == bytes(4) + b"abcdefghijklmno"
    fs.close(handle)


def test_a_read_only_copy_can_be_looked_at(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"data")
    real_open = os.open

    def read_only(name, flags, *args):
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_open(name, flags, *args)

    monkeypatch.setattr(os, "open", read_only)
    fs = RealFileSystem()
    handle = fs.open(str(path))
    assert fs.pread(handle, 4, 0) == b"data"
    with pytest.raises(StorageFailedError):
        fs.pwrite(handle, b"x", 0)
    with pytest.raises(StorageFailedError):
        fs.open(str(tmp_path / "new"), create=True)
    monkeypatch.undo()
    fs.close(handle)


def test_memory_forgets_what_was_not_synced():
    fs = MemoryFileSystem()
    fs.makedirs("/d")
    handle = fs.open("/d/file", create=True)
    fs.pwrite(handle, b"synced", 0)
    fs.sync(handle)
    fs.sync_dir("/d")
    fs.pwrite(handle, b"LOST", 0)
    fs.resize(handle, 3)
    fs.open("/d/other", create=True)
    fs.rename("/d/file", "/d/renamed")
    boot = fs.boot_id()
    fs.crash()
    assert fs.boot_id() != boot
    assert fs.listdir("/d") == ["file"]
    handle = fs.open("/d/file")
    assert fs.pread(handle, 10, 0) == b"synced"


def test_memory_keeps_what_it_is_told_to():
    fs = MemoryFileSystem()
    fs.makedirs("/d")
    handle = fs.open("/d/file", create=True)
    fs.sync_dir("/d")
    for at in range(4):
        fs.pwrite(handle, b"%d" % at * 4, at * 4)
    kept = {0: b"0000", 4: None, 8: b"22", 12: b"3333"}
    fs.open("/d/kept", create=True)
    fs.open("/d/gone", create=True)
    fs.crash(lambda _path, write: kept[write.offset], lambda path: path == "/d/kept")
    handle = fs.open("/d/file")
    assert fs.pread(handle, 20, 0) == b"0000" + bytes(4) + b"22" + bytes(2) + b"3333"
    assert fs.listdir("/d") == ["file", "kept"]


def test_memory_survives_a_kill_but_handles_do_not():
    fs = MemoryFileSystem()
    fs.makedirs("/d")
    lock = fs.lock("/d/lock")
    handle = fs.open("/d/file", create=True)
    fs.pwrite(handle, b"cached", 0)
    boot = fs.boot_id()
    fs.kill()
    assert fs.boot_id() == boot
    assert fs.pread(fs.open("/d/file"), 6, 0) == b"cached"
    assert fs.lock("/d/lock") != lock


def test_a_gigabyte_of_nothing_costs_nothing():
    fs = MemoryFileSystem()
    handle = fs.open("/big", create=True)
    fs.resize(handle, 1 << 30)
    fs.zero(handle, 0, 1 << 22)
    fs.pwrite(handle, b"x", (1 << 30) - 1)
    assert len(fs.files["/big"].pages) == 1
    assert fs.pread(handle, 2, (1 << 30) - 2) == b"\0x"
