"""RocketMQ's access control, version 1: AccessKey and an HMAC-SHA1 signature over a request's fields and body.

The accounts stand in a file of upstream's form, ``plain_acl.yml``::

    globalWhiteRemoteAddresses:
      - 10.10.103.*
    accounts:
      - accessKey: RocketMQ
        secretKey: 12345678
        whiteRemoteAddress:
        admin: false
        defaultTopicPerm: DENY
        defaultGroupPerm: SUB
        topicPerms:
          - topicA=DENY
          - topicB=PUB|SUB
        groupPerms:
          - groupA=DENY

Only this form is read: mappings, lists and plain or quoted scalars by indentation, not all of YAML.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from broker_adapter.remoting.codes import RequestCode, ResponseCode
from broker_adapter.remoting.command import RemotingCommand, text_of
from broker_adapter.remoting.connection import Handler, RemotingConnection, Reply
from broker_adapter.remoting.errors import CommandError
from dledger.errors import ConfigError
from dledger.security.files import Reloaded

__all__ = ["AccessControl", "Account", "guarded", "parse_acl", "signature", "signer", "signer_from_environment"]

ACCESS_KEY: Final = "AccessKey"
SIGNATURE: Final = "Signature"
_UNSIGNED: Final = frozenset({SIGNATURE, "_UNIQUE_KEY_QUERY"})

_PUB, _SUB = 1, 2
_PERMS: Final = {
    "DENY": 0,
    "PUB": _PUB,
    "SUB": _SUB,
    "PUB|SUB": _PUB | _SUB,
    "SUB|PUB": _PUB | _SUB,
    "ANY": _PUB | _SUB,
}
_RETRY: Final = "%RETRY%"
_MIN_KEY_CHARACTERS: Final = 6
_MAX_REMEMBERED: Final = 256

_ADMIN_CODES: Final = frozenset(
    {
        int(RequestCode.UPDATE_AND_CREATE_TOPIC),
        int(RequestCode.UPDATE_BROKER_CONFIG),
        int(RequestCode.DELETE_TOPIC_IN_BROKER),
        int(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP),
        int(RequestCode.DELETE_SUBSCRIPTIONGROUP),
        int(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET),
        int(RequestCode.CONSUME_MESSAGE_DIRECTLY),
    }
)


@dataclass(frozen=True, slots=True)
class Account:
    """One account. Permissions are bits: 1 publish, 2 subscribe."""

    access_key: str
    secret: bytes = field(repr=False)
    admin: bool = False
    white: tuple[str, ...] = ()
    default_topic: int = 0
    default_group: int = 0
    topics: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)

    def may(self, resource: str, perm: int) -> bool:
        """Whether the account has ``perm`` for a topic, or for a group where the name is that of its retry topic."""
        if self.admin:
            return True
        if resource.startswith(_RETRY):
            group = resource.removeprefix(_RETRY)
            return bool(self.groups.get(group, self.default_group) & perm)
        return bool(self.topics.get(resource, self.default_topic) & perm)


@dataclass(frozen=True, slots=True)
class _Rules:
    white: tuple[str, ...]
    accounts: Mapping[str, Account]


# ---------------------------------------------------------------------- signatures


def signature(command: RemotingCommand, secret: bytes) -> str:
    """Return the signature of a request: every field but the signature, by name, then the body; HMAC-SHA1, base64."""
    fields = [
        text_of(value) for name, value in sorted(command.ext.items()) if name not in _UNSIGNED and value is not None
    ]
    code = hmac.new(secret, "".join(fields).encode(), hashlib.sha1)
    code.update(command.body)
    return base64.b64encode(code.digest()).decode("ascii")


def signer(access_key: str, secret_key: str) -> Callable[[RemotingCommand], None]:
    """Return a function that signs a request in place, as a client's hook does."""
    secret = secret_key.encode()

    def sign(command: RemotingCommand) -> None:
        command.ext.pop(SIGNATURE, None)
        command.ext[ACCESS_KEY] = access_key
        command.ext[SIGNATURE] = signature(command, secret)

    return sign


def signer_from_environment() -> Callable[[RemotingCommand], None] | None:
    """Return a signer for operators' tools by ROCKETMQ_ACCESS_KEY and ROCKETMQ_SECRET_KEY; None where unset."""
    access_key, secret_key = (os.environ.get(f"ROCKETMQ_{name}_KEY", "") for name in ("ACCESS", "SECRET"))
    return signer(access_key, secret_key) if access_key and secret_key else None


# ---------------------------------------------------------------------- the file


def _scalar(text: str) -> str:
    text = text.strip()
    quote = text[:1]
    if quote and quote in "'\"" and (end := text.find(quote, 1)) > 0:
        return text[1:end]
    if text.startswith("#"):
        return ""
    return text.split(" #", 1)[0].strip()


def _lines(text: str) -> list[tuple[int, int, str]]:
    """Return (number, indentation, content) of the lines that say something."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if content and not content.startswith("#") and content != "---":
            if "\t" in line[: len(line) - len(line.lstrip())]:
                raise ValueError(f"{number}:1: a tab in the indentation")
            found.append((number, len(line) - len(line.lstrip(" ")), content))
    return found


def _block(lines: list[tuple[int, int, str]], at: int, indent: int) -> tuple[Any, int]:
    """Read a mapping or a list whose lines stand at ``indent``; return it and the position behind it."""
    result: Any = [] if lines[at][2].startswith("-") else {}
    while at < len(lines) and lines[at][1] == indent:
        number, _, content = lines[at]
        if isinstance(result, list):
            if not content.startswith("-"):
                break
            rest = content[1:].lstrip()
            if ":" in rest and "=" not in rest.split(":", 1)[0]:
                inner = indent + len(content) - len(rest)
                lines[at] = (number, inner, rest)
                value, at = _block(lines, at, inner)
            else:
                value, at = _scalar(rest), at + 1
            result.append(value)
            continue
        key, colon, rest = content.partition(":")
        if not colon:
            raise ValueError(f"{number}:{indent + 1}: not KEY: VALUE")
        value, at = _scalar(rest), at + 1
        if not value and at < len(lines) and _is_below(lines[at], indent):
            value, at = _block(lines, at, lines[at][1])
        result[key.strip()] = value
    return result, at


def _is_below(line: tuple[int, int, str], indent: int) -> bool:
    return line[1] > indent or (line[1] == indent and line[2].startswith("-"))


def _parse_tree(text: str) -> dict[str, Any]:
    lines = _lines(text)
    if not lines:
        raise ValueError("1:1: nothing in it")
    tree, at = _block(lines, 0, lines[0][1])
    if at < len(lines):
        raise ValueError(f"{lines[at][0]}:1: an indentation that belongs to nothing")
    if not isinstance(tree, dict):
        raise ValueError("1:1: no mapping")
    return tree


def _list(value: object) -> list[Any]:
    if value in ("", None):
        return []
    return value if isinstance(value, list) else [value]


def _perm(text: str, where: str) -> int:
    perm = _PERMS.get(text.strip().upper().replace(" ", ""))
    if perm is None:
        raise ValueError(f'1:1: {where}: "{text}" is not DENY, PUB, SUB or PUB|SUB')
    return perm


def _perms(value: object, where: str) -> dict[str, int]:
    found = {}
    for item in _list(value):
        name, equals, perm = str(item).rpartition("=")
        if not equals:
            raise ValueError(f'1:1: {where}: "{item}" is not NAME=PERMISSION')
        found[name.strip()] = _perm(perm, where)
    return found


def _account(raw: object, number: int) -> Account:
    if not isinstance(raw, dict):
        raise ValueError(f"1:1: account {number} is no mapping")
    access_key, secret = str(raw.get("accessKey", "")), str(raw.get("secretKey", ""))
    if min(len(access_key), len(secret)) < _MIN_KEY_CHARACTERS:
        raise ValueError(
            f"1:1: account {number}: accessKey and secretKey have {_MIN_KEY_CHARACTERS} characters or more"
        )
    where = f"account {access_key}"
    return Account(
        access_key,
        secret.encode(),
        str(raw.get("admin", "false")).lower() == "true",
        tuple(str(item) for item in _list(raw.get("whiteRemoteAddress"))),
        _perm(str(raw.get("defaultTopicPerm") or "DENY"), where),
        _perm(str(raw.get("defaultGroupPerm") or "SUB"), where),
        _perms(raw.get("topicPerms"), where),
        _perms(raw.get("groupPerms"), where),
    )


def parse_acl(text: str, path: str) -> _Rules:
    """Read a ``plain_acl.yml``.

    Raises:
        ConfigError: says what is wrong; no secret is shown.
    """
    try:
        tree = _parse_tree(text)
        accounts = [_account(raw, number) for number, raw in enumerate(_list(tree.get("accounts")), 1)]
        if len({account.access_key for account in accounts}) < len(accounts):
            raise ValueError("1:1: an accessKey stands twice")
    except ValueError as error:
        raise ConfigError([f"{path}:{error}"]) from None
    white = tuple(str(item) for item in _list(tree.get("globalWhiteRemoteAddresses")))
    return _Rules(white, {account.access_key: account for account in accounts})


def _is_white(patterns: tuple[str, ...], host: str) -> bool:
    """Whether a host matches ``*``, an address, one with ``*`` parts, or a network."""
    for pattern in patterns:
        if pattern in {"*", "*.*.*.*", host}:
            return True
        if "/" in pattern:
            try:
                if ipaddress.ip_address(host) in ipaddress.ip_network(pattern, strict=False):
                    return True
            except ValueError:
                continue
        parts, given = pattern.split("."), host.split(".")
        if len(parts) == len(given) == 4 and all(p in {"*", g} for p, g in zip(parts, given, strict=True)):
            return True
    return False


# ---------------------------------------------------------------------- the check


def _needs(request: RemotingCommand) -> list[tuple[str, int]]:
    """Return (topic, permission) pairs that a request needs; a group is named by its retry topic. As upstream."""
    text = request.text_or
    match request.code:
        case RequestCode.SEND_MESSAGE:
            return [(text("topic"), _PUB)]
        case RequestCode.SEND_MESSAGE_V2 | RequestCode.SEND_BATCH_MESSAGE:
            topic = text("b") or text("topic")
            return [(topic, _SUB if topic.startswith(_RETRY) else _PUB)]
        case RequestCode.CONSUMER_SEND_MSG_BACK:
            return [(_RETRY + text("group"), _SUB)]
        case RequestCode.PULL_MESSAGE | RequestCode.LITE_PULL_MESSAGE:
            return [(text("topic"), _SUB), (_RETRY + text("consumerGroup"), _SUB)]
        case RequestCode.QUERY_MESSAGE:
            return [(text("topic"), _SUB)]
        case RequestCode.UPDATE_CONSUMER_OFFSET | RequestCode.QUERY_CONSUMER_OFFSET:
            return [(_RETRY + text("consumerGroup"), _SUB), (text("topic"), _SUB)]
        case RequestCode.GET_CONSUMER_LIST_BY_GROUP:
            return [(_RETRY + text("consumerGroup"), _SUB)]
        case RequestCode.UNREGISTER_CLIENT:
            return [(_RETRY + text("consumerGroup"), _SUB)] if text("consumerGroup") else []
        case RequestCode.HEART_BEAT:
            return _heartbeat_needs(request)
        case _:
            return []


def _heartbeat_needs(request: RemotingCommand) -> list[tuple[str, int]]:
    try:
        data = json.loads(bytes(request.body))
        needs = []
        for group in data.get("consumerDataSet") or []:
            needs.append((_RETRY + str(group["groupName"]), _SUB))
            topics = [str(item["topic"]) for item in group.get("subscriptionDataSet") or []]
            needs += [(topic, _SUB) for topic in topics if not topic.startswith(_RETRY)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # the handler says what is wrong with it
    return needs


class AccessControl:
    """Checks requests by the accounts of a file, which is read again when it changes.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._rules = Reloaded((path,), self._read)
        self.denied_count = 0
        self._told: dict[tuple[str, str], None] = {}

    def _read(self) -> _Rules:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                return parse_acl(file.read(1 << 20), self._path)
        except OSError as error:
            raise ConfigError([f"{self._path}: cannot be read: {error.strerror or error}; see aclFile"]) from error

    def own_signer(self) -> Callable[[RemotingCommand], None] | None:
        """Return a signer with the first admin account, for what brokers ask of each other; None: there is none."""
        for account in self._rules.get().accounts.values():
            if account.admin:
                return signer(account.access_key, account.secret.decode())
        return None

    def check(self, request: RemotingCommand, remote_address: str) -> None:
        """Let a request pass, or refuse it.

        Raises:
            CommandError: NO_PERMISSION; says what is missing, and never which part of a signature was right.
        """
        rules = self._rules.get()
        host = remote_address.rpartition(":")[0].strip("[]")
        if _is_white(rules.white, host):
            return
        access_key = request.text_or(ACCESS_KEY)
        account = rules.accounts.get(access_key)
        if account is not None and _is_white(account.white, host):
            return
        # A key nobody has is checked all the same: the time must not tell which keys there are.
        expected = signature(request, b"no such account" if account is None else account.secret)
        is_right = hmac.compare_digest(expected.encode(), request.text_or(SIGNATURE).encode())
        if account is None or not is_right:
            what = "the request carries no AccessKey" if not access_key else "AccessKey and Signature do not fit"
            self._refuse(request, host, what)
            return
        if request.code in _ADMIN_CODES and not account.admin:
            self._refuse(request, host, f"{access_key} is no admin")
        for resource, perm in _needs(request):
            if resource and not account.may(resource, perm):
                kind = "publish to" if perm == _PUB else "subscribe to"
                self._refuse(request, host, f"{access_key} may not {kind} {resource}")

    def _refuse(self, request: RemotingCommand, host: str, what: str) -> None:
        self.denied_count += 1
        if (host, what) not in self._told:
            if len(self._told) >= _MAX_REMEMBERED:
                self._told.pop(next(iter(self._told)))
            self._told[host, what] = None
            structlog.get_logger().warning("acl_denied", remote=host, code=request.code, reason=what)
        raise CommandError(ResponseCode.NO_PERMISSION, f"access denied: {what}")


def guarded(handler: Handler, acl: AccessControl) -> Handler:
    """Return a handler that is called only for requests that pass."""

    def handle(request: RemotingCommand, connection: RemotingConnection) -> Reply | Any:  # noqa: ANN401 - a Handler's
        acl.check(request, connection.remote_address)
        return handler(request, connection)

    return handle
