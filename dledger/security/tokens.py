"""Bearer tokens: a file of names, rights and tokens; an interceptor that lets nobody pass without the right one."""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
from grpc import aio

from dledger.errors import ConfigError
from dledger.security.files import Reloaded

__all__ = ["AUTHORIZATION", "NEEDED_RIGHTS", "Right", "Token", "TokenInterceptor", "TokenStore", "parse_tokens"]

AUTHORIZATION: Final = "authorization"
"""The metadata key; its value is ``Bearer TOKEN``."""

_LEDGER: Final = "/dledger.v1.LedgerService/"
_ADMIN: Final = "/dledger.v1.AdminService/"
_RAFT: Final = "/dledger.v1.RaftService/"
_HEALTH: Final = "/grpc.health.v1.Health/"
_REFLECTION: Final = "/grpc.reflection."

_NAME: Final = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_TOKEN: Final = re.compile(r"[!-~]{16,256}")
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_REMEMBERED: Final = 256


class Right(enum.Enum):
    """What a token is good for. ``admin`` moves leadership; it does not include the others."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


_ANY: Final = frozenset(Right)
_WRITES: Final = ("OpenSession", "Append", "AppendBatch", "AppendStream")

NEEDED_RIGHTS: Final[dict[str, frozenset[Right]]] = {
    **{_LEDGER + name: frozenset({Right.WRITE}) for name in _WRITES},
    **{_LEDGER + name: frozenset({Right.READ}) for name in ("Get", "Read", "ReadStream")},
    _LEDGER + "Metadata": _ANY,
    _ADMIN + "Status": _ANY,
    _ADMIN + "TransferLeadership": frozenset({Right.ADMIN}),
    _ADMIN + "StepDown": frozenset({Right.ADMIN}),
}
"""Method → rights of which one is needed. A method that is not here needs ``admin``."""


@dataclass(frozen=True, slots=True)
class Token:
    """One line of the file. Only the digest of the token is kept."""

    name: str
    rights: frozenset[Right]
    digest: bytes


def parse_tokens(text: str, path: str) -> tuple[Token, ...]:
    """Read ``NAME RIGHT[,RIGHT…] TOKEN`` lines; the token itself, or ``sha256:`` and its digest in hexadecimal.

    Raises:
        ConfigError: every bad line, by number; no token is shown.
    """
    found: dict[str, Token] = {}
    problems: list[str] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            token = _parse_line(line.split())
            if token.name in found:
                raise ValueError(f'the name "{token.name}" stands twice')
            found[token.name] = token
        except ValueError as error:
            problems.append(f"{path}:{number}:1: {error}")
    if not found and not problems:
        problems.append(f"{path}:1:1: no token in it: nobody could do anything; leave tokensFile out to ask for none")
    if problems:
        raise ConfigError(problems)
    return tuple(found.values())


def _parse_line(words: list[str]) -> Token:
    if len(words) != 3:
        raise ValueError(f"{len(words)} words; a line is NAME RIGHT[,RIGHT] TOKEN")
    name, rights_text, secret = words
    if not _NAME.fullmatch(name):
        raise ValueError("the name has other characters than letters, digits and _ . @ -, or more than 64")
    known = {right.value: right for right in Right}
    names = [right for right in rights_text.split(",") if right]
    strangers = [right for right in names if right not in known]
    if strangers or not names:
        raise ValueError(f'"{rights_text}": rights are {", ".join(known)}')
    digest = _DIGEST.fullmatch(secret)
    if digest is None and (secret.startswith("sha256:") or not _TOKEN.fullmatch(secret)):
        raise ValueError("the token is not 16 to 256 printable characters, nor sha256: and 64 hexadecimal digits")
    known_digest = bytes.fromhex(digest[1]) if digest else hashlib.sha256(secret.encode()).digest()
    return Token(name, frozenset(known[right] for right in names), known_digest)


class TokenStore:
    """The tokens of a file, read again when it changes (once a second at most); a bad change is not taken.

    Raises:
        ConfigError: the file cannot be read, is open to every user of the machine, or has a bad line.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._tokens = Reloaded((path,), self._read)

    def _read(self) -> tuple[Token, ...]:
        try:
            with open(self._path, "rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o002:
                    raise ConfigError([f"{self._path}: everybody may write to it; chmod o-w it"])
                data = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError([f"{self._path}: cannot be read: {error.strerror or error}"]) from error
        if len(data) > _MAX_FILE_BYTES:
            raise ConfigError([f"{self._path}: more than {_MAX_FILE_BYTES} bytes"])
        return parse_tokens(data.decode("utf-8", "replace"), self._path)

    def find(self, secret: str) -> Token | None:
        """Return the token with this text. Takes the same time whatever of it is right, and wherever it stands."""
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        found: Token | None = None
        for token in self._tokens.get():
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def _bearer(metadata: Sequence[tuple[str, str | bytes]]) -> str | None:
    for key, value in metadata:
        if key == AUTHORIZATION:
            text = value if isinstance(value, str) else value.decode("latin-1")
            scheme, _, secret = text.partition(" ")
            return secret.strip() if scheme.lower() == "bearer" else None
    return None


class TokenInterceptor(aio.ServerInterceptor):
    """Refuses calls without a token (UNAUTHENTICATED), and with one that has not the right (PERMISSION_DENIED).

    Health probes need none; Raft between nodes is guarded by certificates.
    """

    def __init__(self, tokens: TokenStore) -> None:
        self._tokens = tokens
        self.denied: Counter[str] = Counter()
        """Calls refused: ``unauthenticated`` and ``permission_denied``."""
        self._told: dict[tuple[str, str], None] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 - a handler of any kind
        method = str(handler_call_details.method)
        if method.startswith((_RAFT, _HEALTH)):
            return await continuation(handler_call_details)
        refusal = self._refusal(method, handler_call_details.invocation_metadata or ())
        return await continuation(handler_call_details) if refusal is None else self._deny(method, *refusal)

    def _refusal(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[grpc.StatusCode, str] | None:
        secret = _bearer(metadata)
        if secret is None:
            return grpc.StatusCode.UNAUTHENTICATED, "this node asks for a token: authorization: Bearer TOKEN"
        token = self._tokens.find(secret)
        if token is None:
            return grpc.StatusCode.UNAUTHENTICATED, "the token is not known here"
        needed = _ANY if method.startswith(_REFLECTION) else NEEDED_RIGHTS.get(method, frozenset({Right.ADMIN}))
        if needed & token.rights:
            return None
        names = " or ".join(sorted(right.value for right in needed))
        return grpc.StatusCode.PERMISSION_DENIED, f'the token "{token.name}" has not the right {names}'

    def _deny(self, method: str, code: grpc.StatusCode, reason: str) -> grpc.RpcMethodHandler[Any, Any]:
        self.denied[code.name.lower()] += 1

        async def deny(_requests: object, context: aio.ServicerContext[Any, Any]) -> NoReturn:
            self._complain(context.peer(), method, code, reason)
            await context.abort(code, reason)

        # A stream handler serves every kind of call: it is run before any request has been read.
        return grpc.stream_stream_rpc_method_handler(deny)

    def _complain(self, remote: str, method: str, code: grpc.StatusCode, reason: str) -> None:
        """Log the first refusal of a host and a code; whoever floods is not to fill the log too."""
        key = (remote.rpartition(":")[0], code.name)
        if key not in self._told:
            if len(self._told) >= _MAX_REMEMBERED:
                self._told.pop(next(iter(self._told)))
            self._told[key] = None
            import structlog  # noqa: PLC0415 - clients import this module and log nothing: a tenth of a second

            structlog.get_logger().warning("access_denied", remote=remote, method=method, reason=reason)
