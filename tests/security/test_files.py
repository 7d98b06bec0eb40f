"""Certificate files: what is found wrong with them at the start, and what is taken when they change."""

from __future__ import annotations

import datetime
import os

import pytest
from structlog.testing import capture_logs

from dledger.errors import ConfigError
from dledger.security.files import CertificateFiles, Reloaded, check_node_certificate

dev_certs = pytest.importorskip("dledger.security.dev_certs", reason="needs cryptography (extra tls)")


def files(certs, name: str = "n0") -> CertificateFiles:
    return CertificateFiles(str(certs / "ca.pem"), str(certs / f"{name}.pem"), str(certs / f"{name}.key"))


def write(directory, authority, name, **options):
    pair = authority.issue(name, ["127.0.0.1"], **options)
    directory.mkdir(exist_ok=True)
    (directory / "ca.pem").write_bytes(authority.certificate)
    (directory / f"{name}.pem").write_bytes(pair.cert)
    (directory / f"{name}.key").write_bytes(pair.key)
    return files(directory, name)


def test_good_files_pass(certs):
    check_node_certificate(files(certs), "n0")
    assert files(certs).read().ca.startswith(b"-----BEGIN CERTIFICATE-----")


def test_a_certificate_must_name_the_node(certs):
    with pytest.raises(ConfigError, match=r'n1\.pem: peers would refuse it: .*must name "n0"'):
        check_node_certificate(files(certs, "n1"), "n0")


def test_a_certificate_must_be_of_the_ca(certs, tmp_path):
    write(tmp_path / "other", dev_certs.DevAuthority(), "n0")
    mixed = CertificateFiles(str(tmp_path / "other" / "ca.pem"), str(certs / "n0.pem"), str(certs / "n0.key"))
    with pytest.raises(ConfigError, match="peers would refuse it"):
        check_node_certificate(mixed, "n0")


def test_a_key_must_fit_its_certificate(certs):
    mixed = CertificateFiles(str(certs / "ca.pem"), str(certs / "n0.pem"), str(certs / "n1.key"))
    with pytest.raises(ConfigError, match=r"no certificate with its unencrypted key: .*MISMATCH"):
        check_node_certificate(mixed, "n0")


def test_an_expired_certificate_is_said_to_be_expired(tmp_path):
    authority = dev_certs.DevAuthority()
    authority._begin -= datetime.timedelta(days=3)
    authority._end = authority._begin + datetime.timedelta(days=1)
    with pytest.raises(ConfigError, match="certificate has expired"):
        check_node_certificate(write(tmp_path / "old", authority, "n0"), "n0")


def test_a_certificate_for_calling_only_serves_nobody(tmp_path):
    with pytest.raises(ConfigError, match=r"peers would refuse it: .*purpose"):
        check_node_certificate(write(tmp_path / "c", dev_certs.DevAuthority(), "n0", serves=False), "n0")


@pytest.mark.parametrize("name", ["ca.pem", "n0.pem", "n0.key"])
@pytest.mark.parametrize("content", [b"", b"s3cret", b"\x00\xff" * 100])
def test_garbage_is_named_and_not_shown(certs, name, content):
    (certs / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name) as caught:
        check_node_certificate(files(certs), "n0")
    assert "s3cret" not in str(caught.value)


def test_an_encrypted_key_does_not_ask_for_its_password(certs, tmp_path):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((certs / "n0.key").read_bytes(), None)
    sealed = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (certs / "n0.key").write_bytes(sealed)
    with pytest.raises(ConfigError, match="unencrypted key"):
        files(certs).read()


def test_the_key_is_in_no_repr(certs):
    data = files(certs).read()
    assert "PRIVATE" not in repr(data) + str(data)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_changed_files_are_taken_and_looked_at_once_a_second(tmp_path):
    path, clock = tmp_path / "value", Clock()
    path.write_text("one")
    reads = []

    def make() -> str:
        reads.append(path.read_text())
        return reads[-1]

    value = Reloaded((str(path),), make, clock)
    path.write_text("changed")
    assert value.get() == "one"  # not looked at yet
    clock.now = 1.0
    assert value.get() == "changed"
    assert value.generation == 1
    clock.now = 9.0
    assert value.get() == "changed"
    assert reads == ["one", "changed"]


def test_a_change_that_cannot_be_used_is_reported_once_and_not_taken(certs):
    clock = Clock()
    paths = files(certs)

    def make():
        check_node_certificate(paths, "n0")
        return paths.read()

    value = Reloaded(paths.paths(), make, clock)
    before = value.get()
    (certs / "n0.pem").write_bytes((certs / "n1.pem").read_bytes())  # neither fits the key nor names n0
    with capture_logs() as logs:
        for second in (1.0, 2.0, 3.0):
            clock.now = second
            assert value.get() is before
    assert [event["event"] for event in logs] == ["reload_failed"]
    assert "n0.pem" in logs[0]["error"]
    os.unlink(certs / "n0.key")
    clock.now = 4.0
    assert value.get() is before
    assert value.generation == 0
    dev_certs.write_dev_certificates(certs, ["n0"], ["127.0.0.1"])
    clock.now = 5.0
    assert value.get() is not before
    assert value.generation == 1
