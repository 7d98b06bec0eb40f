"""The wire contract: the names buf's STANDARD rules ask for, and generated code that is what ``proto/`` says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dledger.raft.messages import EntryType
from dledger.v1 import admin_pb2, ledger_pb2, raft_pb2

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = [module.DESCRIPTOR for module in (raft_pb2, ledger_pb2, admin_pb2)]

SHARED = {
    ("RaftMessage", "RaftMessage"),
    ("AppendBatchRequest", "AppendBatchResponse"),
    ("ReadRequest", "ReadResponse"),
}
"""Replicate is a conversation of one message type; AppendStream is AppendBatch pipelined, ReadStream is Read."""


def snake(name):
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_names(file):
    assert file.package == "dledger.v1"
    assert file.name.startswith("dledger/v1/")
    for message in file.message_types_by_name.values():
        assert re.fullmatch(r"([A-Z][a-z0-9]+)+", message.name)
        for field in message.fields:
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name), field.full_name
    for enum in file.enum_types_by_name.values():
        assert enum.values[0].name == f"{snake(enum.name)}_UNSPECIFIED"
        assert enum.values[0].number == 0
        for value in enum.values:
            assert value.name.startswith(f"{snake(enum.name)}_")
    for service in file.services_by_name.values():
        assert service.name.endswith("Service")
        for method in service.methods:
            pair = (method.input_type.name, method.output_type.name)
            assert pair in SHARED or pair == (f"{method.name}Request", f"{method.name}Response"), method.full_name


def test_entry_types_have_the_numbers_of_the_files():
    """The wire's entry type is the entry's magic, so that nothing is translated on the way."""
    names = {value.name.removeprefix("ENTRY_TYPE_"): value.number for value in ledger_pb2.EntryType.DESCRIPTOR.values}
    assert names == {"UNSPECIFIED": 0, **{kind.name: int(kind) for kind in EntryType}}


def script():
    spec = importlib.util.spec_from_file_location("gen_proto", ROOT / "scripts" / "gen_proto.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def toolchain():
    gen_proto = script()
    try:
        gen_proto.toolchain()
    except gen_proto.ToolchainError as error:
        pytest.skip(f"no toolchain: {str(error).splitlines()[0]}")
    return gen_proto


def test_the_committed_code_is_what_the_protos_say(toolchain):
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gen_proto.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_difference_is_found_and_named(toolchain, tmp_path, monkeypatch):
    names = toolchain.generate(tmp_path / "fresh")
    tree = tmp_path / "tree"
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((tmp_path / "fresh" / name).read_bytes())
    monkeypatch.setattr(toolchain, "ROOT", tree)
    assert toolchain.differences(tmp_path / "fresh", names) == []
    (tree / "dledger/v1/raft_pb2.py").write_text("changed\n")
    (tree / "dledger/v1/admin_pb2.pyi").unlink()
    (tree / "dledger/v1/old_pb2.py").write_text("")
    found = "\n".join(toolchain.differences(tmp_path / "fresh", names))
    assert "left over: dledger/v1/old_pb2.py" in found
    assert "missing: dledger/v1/admin_pb2.pyi" in found
    assert "differs: dledger/v1/raft_pb2.py" in found
    assert "-changed" in found
