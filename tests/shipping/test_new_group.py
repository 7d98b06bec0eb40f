"""``dledger unsafe-new-group``: changes one name, only when told to, only in a sound folder that nobody has open."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from dledger import MemberRole
from dledger.cli.exit_codes import ExitCode
from dledger.cli.main import _run
from dledger.config import DLedgerConfig
from dledger.errors import StorageError
from dledger.server import DLedgerServer


def config(root: Path, group: str = "old") -> DLedgerConfig:
    values = {"group": group, "selfId": "n0", "peers": "n0-127.0.0.1:0", "storePathRootDir": str(root)}
    return DLedgerConfig.from_mapping(
        values | {"mappedFileSizeForEntryData": "8MiB", "mappedFileSizeForEntryIndex": "1MiB"}
    )


class Leads:
    """Says when the node has become leader."""

    def __init__(self) -> None:
        self.now = asyncio.Event()

    def startup(self) -> None: ...

    def shutdown(self) -> None: ...

    def handle(self, term: int, role: MemberRole) -> None:
        if role is MemberRole.LEADER:
            self.now.set()


async def bodies(found: DLedgerConfig, *appended: bytes) -> list[bytes]:
    """Start the node, append, read all, stop."""
    server, leads = DLedgerServer(found), Leads()
    server.add_role_change_handler(leads)
    await server.start()
    try:
        await leads.now.wait()
        for body in appended:
            await server.append(body)
        return [entry.body async for entry in server.read()]
    finally:
        await server.stop()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("old")
    asyncio.run(bodies(config(root), b"one", b"two"))
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "root"))


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_without_yes_it_only_looks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(root)
    assert _run(["unsafe-new-group", str(root), "--group", "new"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("n0 of group old: 3 entries, last index 2 of term 1, chain CRC ")
    assert "beyond index 2 is lost" in shown.err
    assert "add --yes" in shown.err
    assert contents(root) == before


def test_the_log_goes_on_in_the_new_group_and_in_no_other(root: Path) -> None:
    before = contents(root)
    assert _run(["unsafe-new-group", str(root), "--group", "new", "--yes"]) == 0
    after = contents(root)
    assert {name for name in before if before[name] != after[name]} == {"identity"}, "term, vote and log stay"
    with pytest.raises(StorageError, match="belongs to node n0 of group new"):
        asyncio.run(bodies(config(root)))
    assert asyncio.run(bodies(config(root, "new"), b"three")) == [b"one", b"two", b"three"]


def test_a_running_node_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def attempt() -> int:
        server = DLedgerServer(config(root))
        await server.start()
        try:
            return await asyncio.to_thread(_run, ["unsafe-new-group", str(root), "--group", "new", "--yes"])
        finally:
            await server.stop()

    assert asyncio.run(attempt()) == ExitCode.FAILED
    assert "is in use by process " in capsys.readouterr().err
    assert asyncio.run(bodies(config(root))) == [b"one", b"two"]


def test_a_damaged_log_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (segment,) = (root / "dledger-n0" / "data").iterdir()
    segment.write_bytes(segment.read_bytes().replace(b"one", b"0ne"))
    before = contents(root)
    assert _run(["unsafe-new-group", str(root), "--group", "new", "--yes"]) == ExitCode.FAILED
    assert f"{segment}: byte " in capsys.readouterr().err
    assert contents(root) == before


@pytest.mark.parametrize(
    ("group", "code", "message"),
    [("old", ExitCode.FAILED, "is group old's already"), ("a b", ExitCode.USAGE, "is not a group name")],
    ids=["same", "no-name"],
)
def test_wrong_names_are_refused(
    root: Path, group: str, code: ExitCode, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["unsafe-new-group", str(root), "--group", group, "--yes"]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [(None, "no identity"), (b"rubbish\n", "identity is damaged")])
def test_a_folder_without_a_sound_identity_is_refused(
    root: Path, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = root / "dledger-n0" / "identity"
    if content is None:
        identity.unlink()
    else:
        identity.write_bytes(content)
    assert _run(["unsafe-new-group", str(root), "--group", "new", "--yes"]) == ExitCode.FAILED
    assert message in capsys.readouterr().err
