"""Options of commands that talk to nodes: certificates and the token. The token itself is no option: whoever lists the
machine's processes would see it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from dledger.errors import ConfigError
from dledger.security.access import ClientTls, checked_token

__all__ = ["access_options", "resolve_tls", "resolve_token"]

_F = TypeVar("_F", bound=Callable[..., Any])

_META: Final = "dledger.cli.access"
_MAX_TOKEN_BYTES: Final = 4096
_PATHS: Final = (
    ("ca", "Certificates of the CA that signed the nodes' (PEM).  [env DLEDGER_CA]"),
    ("cert", "This client's certificate.  [env DLEDGER_CERT]"),
    ("key", "The certificate's key.  [env DLEDGER_KEY]"),
    ("token-file", "Read the token from FILE.  [env DLEDGER_TOKEN_FILE; DLEDGER_TOKEN is the token itself]"),
)


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Put the value where `resolve_tls` finds it, so that no command has to hand it through."""
    if value is not None and parameter.name is not None:
        context.meta[f"{_META}.{parameter.name}"] = value


def access_options(command: _F) -> _F:
    """Add ``--ca``, ``--cert``, ``--key`` and ``--token-file``; the command's own parameters stay as they are."""
    for name, text in reversed(_PATHS):
        option = click.option(
            f"--{name}", type=click.Path(), metavar="FILE", expose_value=False, callback=_keep, help=text
        )
        command = option(command)
    return command


def _given(name: str) -> str | None:
    """Flag over environment."""
    context = click.get_current_context(silent=True)
    flag = None if context is None else context.meta.get(f"{_META}.{name}")
    return flag or os.environ.get(f"DLEDGER_{name.upper()}", "").strip() or None


def resolve_tls(file_values: Mapping[str, object]) -> ClientTls | None:
    """Return certificates from flags, environment, or a node's file (its own certificate is good for a client, too).

    Raises:
        click.UsageError: a certificate without a CA to check the nodes by.
    """
    ca, cert, key = (_given(name) for name in ("ca", "cert", "key"))
    if ca is None and cert is None and key is None:
        found = [file_values.get(name) for name in ("tls_ca_file", "tls_cert_file", "tls_key_file")]
        ca, cert, key = (value if isinstance(value, str) else None for value in found)
    if ca is None:
        if cert is not None or key is not None:
            raise click.UsageError("--cert and --key need --ca: the nodes' certificates are to be checked by it")
        return None
    return ClientTls(ca, cert, key)


def resolve_token() -> str | None:
    """Return the token of ``--token-file``, DLEDGER_TOKEN or DLEDGER_TOKEN_FILE; None: none is given.

    Raises:
        ConfigError: the file cannot be read, or what stands in it is no token.
    """
    context = click.get_current_context(silent=True)
    path = None if context is None else context.meta.get(f"{_META}.token_file")
    if path is None:
        token = os.environ.get("DLEDGER_TOKEN", "").strip()
        if token:
            return checked_token(token)
        path = _given("token_file")
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return checked_token(file.read(_MAX_TOKEN_BYTES).decode("utf-8", "replace").strip())
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror or error}"]) from error
