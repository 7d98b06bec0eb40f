"""``dledger certs dev``: what it writes is what nodes take."""

from __future__ import annotations

import ssl
import stat

import pytest
from click.testing import CliRunner

pytest.importorskip("cryptography", reason="needs cryptography (extra tls)")

from dledger.cli.certs import certs
from dledger.security.files import CertificateFiles, check_node_certificate


def run(*arguments: str):
    return CliRunner().invoke(certs, ["dev", *arguments], standalone_mode=False)


def test_it_writes_a_ca_and_a_pair_for_each_node_and_a_client(tmp_path):
    folder = tmp_path / "new" / "certs"
    assert run(str(folder), "--nodes", "a,b;c", "--host", "log.example", "--host", "192.0.2.7").return_value == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["ca.pem", *(f"{name}.{kind}" for name in ("a", "b", "c", "client") for kind in ("pem", "key"))]
    )
    for name in ("a", "b", "c"):
        files = CertificateFiles(*(str(folder / part) for part in ("ca.pem", f"{name}.pem", f"{name}.key")))
        for host in (name, "log.example", "localhost"):
            check_node_certificate(files, host)
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("nodes", ["", "a b", "n0,-x", "client"])
def test_bad_node_ids_are_refused(tmp_path, nodes):
    outcome = run(str(tmp_path / "certs"), "--nodes", nodes)
    assert outcome.exception is not None
    assert not (tmp_path / "certs" / "ca.pem").exists()
