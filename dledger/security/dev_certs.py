"""A throw-away CA with certificates for nodes and one client: for development and tests.

Needs the ``tls`` extra (the ``cryptography`` package). The CA's key is not kept: other nodes get a folder of their own.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dledger.errors import UnexpectedArgumentError

__all__ = ["CLIENT_NAME", "DevAuthority", "write_dev_certificates"]

CLIENT_NAME = "client"
"""The name in the client's certificate, and of its files. No node may be called so."""

_CLOCK_SKEW = datetime.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class _Pair:
    cert: bytes
    key: bytes


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternatives(names: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


class DevAuthority:
    """A CA in memory. ``days``: for how long it and what it signs are valid."""

    def __init__(self, days: int = 30) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"dledger dev CA {os.urandom(4).hex()}")
        now = datetime.datetime.now(datetime.UTC)
        self._begin, self._end = now - _CLOCK_SKEW, now + datetime.timedelta(days=days)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM)
        """The CA's certificate (PEM)."""

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begin)
            .not_valid_after(self._end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )

    def issue(self, name: str, alternatives: Sequence[str], *, serves: bool = True) -> _Pair:
        """Return a certificate and its key (PEM) for ``name`` and further host names or addresses.

        ``serves``: good for a server and for calling; else for calling only.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])]
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            self._builder(_name(name), key.public_key())
            .add_extension(x509.SubjectAlternativeName(_alternatives([name, *alternatives])), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return _Pair(certificate.public_bytes(serialization.Encoding.PEM), secret)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file at once under its name, so that a node which reloads sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
    temporary.replace(path)


def write_dev_certificates(
    directory: Path, nodes: Sequence[str], hosts: Sequence[str], *, days: int = 30
) -> dict[str, tuple[Path, Path]]:
    """Write ``ca.pem``, and ``NAME.pem`` with ``NAME.key`` for every node and for ``client``; return name → both paths.

    ``hosts``: names and addresses at which the nodes are reached, in every node's certificate. Files are replaced.

    Raises:
        UnexpectedArgumentError: a node's id cannot stand in a certificate.
    """
    for node in nodes:
        if node == CLIENT_NAME or not node.isascii():
            raise UnexpectedArgumentError(f'a node cannot be called "{node}" in certificates')
    authority = DevAuthority(days)
    directory.mkdir(parents=True, exist_ok=True)
    made: dict[str, tuple[Path, Path]] = {}
    for name in (*nodes, CLIENT_NAME):
        pair = authority.issue(name, hosts if name != CLIENT_NAME else (), serves=name != CLIENT_NAME)
        paths = directory / f"{name}.pem", directory / f"{name}.key"
        _write(paths[1], pair.key, 0o600)
        _write(paths[0], pair.cert, 0o644)
        made[name] = paths
    _write(directory / "ca.pem", authority.certificate, 0o644)
    return made
