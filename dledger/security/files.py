"""Certificate files: read together, checked by a handshake with themselves, and read again when they change."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from dledger.errors import ConfigError
from dledger.security.access import ClientTls

__all__ = ["CertificateFiles", "PemData", "Reloaded", "check_node_certificate"]

_CHECK_EVERY_S: Final = 1.0
_HANDSHAKE_STEPS: Final = 10

_T = TypeVar("_T")
_Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class PemData:
    """What stands in the files. Never shown: the key is among it."""

    ca: bytes
    cert: bytes | None
    key: bytes | None

    def __repr__(self) -> str:
        return f"<PemData ca {len(self.ca)} bytes>"


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Paths of PEM files: a CA bundle, and a certificate (its chain behind it) with its key, or neither of both."""

    ca: str
    cert: str | None = None
    key: str | None = None

    @classmethod
    def of_client(cls, tls: ClientTls) -> CertificateFiles:
        """Return a client's files.

        Raises:
            ConfigError: a certificate without a key, or a key without a certificate.
        """
        if (tls.cert is None) != (tls.key is None):
            raise ConfigError(["tls: a certificate and its key go together; give both or neither"])
        return cls(tls.ca, tls.cert, tls.key)

    def paths(self) -> tuple[str, ...]:
        """Return the paths that are set."""
        return tuple(path for path in (self.ca, self.cert, self.key) if path is not None)

    def read(self) -> PemData:
        """Read the files, and see that key and certificate belong together.

        Raises:
            ConfigError: one cannot be read, is no PEM, or does not fit the others; names the file.
        """
        data = PemData(_read(self.ca), *(None if path is None else _read(path) for path in (self.cert, self.key)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._load(context)
        return data

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_verify_locations(cafile=self.ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError([f"{self.ca}: no PEM certificates of a CA: {_words(error)}"]) from error
        if self.cert is not None and self.key is not None:
            try:
                # An empty password: a key that asks for one must not stop the process at a prompt.
                context.load_cert_chain(self.cert, self.key, password=b"")
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(
                    [f"{self.cert} and {self.key}: no certificate with its unencrypted key: {_words(error)}"]
                ) from error


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror or error}"]) from error


def _words(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)


def check_node_certificate(files: CertificateFiles, node_id: str) -> None:
    """See that peers will accept a node's certificate, by a handshake of the files with themselves, in memory.

    Finds what else shows only as a link that never connects: a certificate of another CA, an expired one, one that
    does not name the node, one that may serve but not call.

    Raises:
        ConfigError: says what is wrong with which file.
    """
    files.read()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.verify_mode = ssl.CERT_REQUIRED
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server_side, client_side):
        files._load(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server, server_hostname=node_id)
    try:
        for _ in range(_HANDSHAKE_STEPS):
            ended = [_step(client), _step(server)]
            if all(ended):
                return
    except ssl.SSLCertVerificationError as error:
        why = f'{error.verify_message} (it must name "{node_id}" among its DNS names)'
        raise ConfigError([f"{files.cert}: peers would refuse it: {why}"]) from error
    except ssl.SSLError as error:
        raise ConfigError([f"{files.cert}: a handshake with itself fails: {_words(error)}"]) from error
    raise ConfigError([f"{files.cert}: a handshake with itself does not end"])


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


class Reloaded(Generic[_T]):
    """A value made from files, made again when they change. Usable from any thread; looks at the files once a second.

    What cannot be read, or is only half replaced, is reported and the old value stays: a mistake in a rotation must
    not take a running node down.
    """

    def __init__(
        self, paths: tuple[str, ...], make: Callable[[], _T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = paths
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._signature = self._sign()
        self._value = make()
        self._tried = self._signature
        self._checked_s = clock()
        self.generation = 0
        """How often the value has been replaced."""

    def get(self) -> _T:
        """Return the current value."""
        with self._lock:
            now = self._clock()
            if now - self._checked_s >= _CHECK_EVERY_S:
                self._checked_s = now
                self._look()
            return self._value

    def _look(self) -> None:
        signature = self._sign()
        if signature in (self._signature, self._tried):
            return
        self._tried = signature
        try:
            value = self._make()
        except Exception as error:
            import structlog  # noqa: PLC0415 - clients import this module and log nothing: a tenth of a second

            structlog.get_logger().error("reload_failed", files=self._paths, error=str(error), keeps="what it had")
            return
        if self._sign() != signature:
            self._tried = ()  # replaced while being read: look again
            return
        self._signature, self._value = signature, value
        self.generation += 1
        import structlog  # noqa: PLC0415 - clients import this module and log nothing: a tenth of a second

        structlog.get_logger().info("reloaded", files=self._paths)

    def _sign(self) -> _Signature:
        found = []
        for path in self._paths:
            try:
                stat = os.stat(path)
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)
