"""What a client shows to be let in. Light to import: the command line uses it before it knows whether it needs TLS."""

from __future__ import annotations

from dataclasses import dataclass

from dledger.errors import ConfigError

__all__ = ["ClientTls", "checked_token"]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Paths of PEM files, read again when they change.

    ``ca``: certificates of the CA that signed the nodes'. ``cert`` and ``key``: a certificate of the client's own,
    where the nodes ask for one (their main port does; ``tlsClientPort`` does not).
    """

    ca: str
    cert: str | None = None
    key: str | None = None


def checked_token(token: str | None) -> str | None:
    """Return a client's token as it is sent.

    Raises:
        ConfigError: characters that cannot stand in a header; the token is not shown.
    """
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(["token: empty, or with characters that no token has (spaces, line ends, non-ASCII)"])
    return token
