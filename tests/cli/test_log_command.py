"""``dledger log``: a sound folder passes, one flipped byte is named, and what is no node's folder is refused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from dledger.cli.exit_codes import ExitCode
from dledger.cli.main import _run
from dledger.config import DLedgerConfig, Peer
from dledger.server import DLedgerServer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stopped single node: a no-op and ten entries."""
    root = tmp_path_factory.mktemp("log")
    config = DLedgerConfig(
        group="g",
        self_id="n0",
        peers=(Peer("n0", "127.0.0.1", 0),),
        store_path_root_dir=str(root),
        max_entry_bytes=1000,
        max_batch_bytes=4096,
        mapped_file_size_for_entry_data=64 * 1024,
        mapped_file_size_for_entry_index=3200,
    )

    async def write() -> None:
        server = DLedgerServer(config)
        await server.start()
        try:
            await server.wait_committed(0)
            await server.append_batch([b"body %d" % n for n in range(10)])
        finally:
            await server.stop()

    asyncio.run(write())
    return config.node_dir


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "dledger-n0"))


def test_a_sound_folder_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert _run(["log", "verify", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASS  11 entries, 0 to 10, last term ")
    assert _run(["log", "verify", str(folder.parent), "-o", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["entries"], report["damage"]) == (True, 11, [])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_folder_need_not_be_writable(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened: list[int] = []
    real = os.open

    def watch(path: str, flags: int, *rest: int, **named: int) -> int:
        opened.append(flags)
        return real(path, flags, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", watch)
        assert _run(["log", "verify", str(folder)]) == 0
    assert opened
    assert not any(flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT) for flags in opened)


def test_a_flipped_byte_is_named_and_is_six(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (segment,) = (folder / "data").iterdir()
    content = segment.read_bytes()
    at = content.index(b"body 4")
    segment.write_bytes(content[:at] + b"B" + content[at + 1 :])
    assert _run(["log", "verify", str(folder)]) == ExitCode.VERDICT_FAIL
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("FAIL  1 damaged place; 5 entries, 0 to 4")
    assert f"damage: {segment}: byte {at - 48}, entry 5: " in out[0]


def test_dump_has_every_entry(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert _run(["log", "dump", "-J", str(folder)]) == 0
    import sys

    sys.stdout.flush()
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [row["index"] for row in rows] == list(range(11))
    assert [row["type"] for row in rows] == ["noop"] + ["normal"] * 10
    assert [row["body"] for row in rows[1:]] == [f"body {n}" for n in range(10)]
    assert _run(["log", "dump", "-o", "plain", "--from", "3", "--to", "4", str(folder)]) == 0
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"body 2\nbody 3\n"


def test_what_is_no_nodes_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "dledger-n1")
    assert _run(["log", "verify", str(tmp_path)]) == ExitCode.FAILED
    assert "name one of dledger-n0, dledger-n1" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert _run(["log", "dump", str(tmp_path / "empty")]) == ExitCode.FAILED
    assert "is not a node's folder" in capsys.readouterr().err
    assert _run(["log", "verify", str(tmp_path / "missing")]) == ExitCode.USAGE
