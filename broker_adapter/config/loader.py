"""A broker's file to a `BrokerConfig`, every mistake at once with its place."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from broker_adapter.config.model import KEYS, BrokerConfig, BrokerRole, FlushDiskType, Key
from broker_adapter.message import MESSAGE_OVERHEAD_BYTES
from dledger.config import (
    BROKER_KEYS,
    DLEDGER_KEYS,
    SETTINGS,
    BadValueError,
    DLedgerConfig,
    Setting,
    parse_boolean,
    parse_bytes,
    parse_conf,
    parse_integer,
    parse_milliseconds,
    split_address,
)
from dledger.errors import ConfigError

__all__ = ["dledger_config", "dledger_settings", "load"]

_NAMESRV_VARIABLE: Final = "NAMESRV_ADDR"
_DLEDGER_ID: Final = re.compile(r"[A-Za-z][0-9]{1,9}")
_DELAY: Final = re.compile(r"[0-9]{1,9}[smhd]")
_OVERRIDE_PLACE: Final = re.compile(r"^(?:-D |default: |)(\w+)")
_SHARED: Final = frozenset(
    {"storePathRootDir", "flushDiskType", "dLegerGroup", "dLegerPeers", "dLegerSelfId", "logLevel", "logFormat"}
)
"""Keys that both the broker and the embedded node read."""

_MIN_BATCH_BYTES: Final = 4 * 1024 * 1024
_MAX_ENTRY_BYTES: Final = next(setting.maximum for setting in SETTINGS if setting.key == "maxEntryBytes")


@dataclass(slots=True)
class _Item:
    """One key as given. ``where``: ``file:line:column`` of the value; ``key_where``: of the key."""

    key: str
    text: str
    where: str
    key_where: str = ""


@dataclass(slots=True)
class _Load:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    dledger: dict[str, str] = field(default_factory=dict)


def _names() -> tuple[dict[str, Key], dict[str, Setting]]:
    own = {name: key for key in KEYS for name in key.names}
    log = {name: setting for setting in SETTINGS for name in setting.names}
    return own, log


def _read(path: str) -> tuple[list[_Item], list[str]]:
    try:
        with open(path, "rb") as file:
            content = file.read((1 << 20) + 1)
    except OSError as error:
        return [], [f"{path}:1:1: cannot be read: {error.strerror or error}"]
    assignments, problems = parse_conf(content, path)
    return [
        _Item(a.key, a.value, f"{path}:{a.line}:{a.value_column}", f"{path}:{a.line}:{a.column}") for a in assignments
    ], problems


def _parse(key: Key, text: str) -> object:
    """Read a value by the type of its default and its unit."""
    if key.field == "namesrv_addr":
        return _addresses(text)
    if key.field == "broker_role":
        return _choice(BrokerRole, text)
    if key.field == "flush_disk_type":
        return _choice(FlushDiskType, text)
    if isinstance(key.default, bool):
        return parse_boolean(text)
    if isinstance(key.default, int):
        parse = {"ms": parse_milliseconds, "bytes": parse_bytes}.get(key.unit, parse_integer)
        number = parse(text)
        if not key.minimum <= number <= key.maximum:
            low_high = f"{key.minimum} and more" if key.maximum >= 2**62 else f"{key.minimum} to {key.maximum}"
            raise BadValueError([(0, f"{number} is out of range {low_high}")])
        return number
    if key.field == "message_delay_level":
        return _delay_levels(text)
    return text


def _choice(kind: type[BrokerRole] | type[FlushDiskType], text: str) -> object:
    for member in kind:
        if member.value == text.upper():
            return member
    raise BadValueError([(0, f'"{text}" is not one of {", ".join(str(m.value) for m in kind)}')])


def _addresses(text: str) -> tuple[str, ...]:
    addresses = tuple(part.strip() for part in text.replace(",", ";").split(";") if part.strip())
    for address in addresses:
        try:
            split_address(address)
        except ValueError as error:
            raise BadValueError([(text.index(address), str(error))]) from None
    return addresses


def _delay_levels(text: str) -> str:
    for part in text.split():
        if not _DELAY.fullmatch(part):
            raise BadValueError([(text.index(part), f'"{part}" is no delay; write numbers with s, m, h or d')])
    if not text.split():
        raise BadValueError([(0, "no delay levels")])
    return text


def _unknown(key: str, known: Mapping[str, object]) -> str:
    lowered = {name.lower(): name for name in [*DLEDGER_KEYS, *BROKER_KEYS, *known]}
    close = difflib.get_close_matches(key.lower(), lowered, 1, 0.75)
    return f'unknown key "{key}"' + (f'; did you mean "{lowered[close[0]]}"?' if close else "")


def _take(item: _Item, load: _Load, own: Mapping[str, Key], log: Mapping[str, Setting]) -> None:
    key, setting = own.get(item.key), log.get(item.key)
    place = item.where
    if key is None and setting is None:
        if item.key in BROKER_KEYS or item.key in DLEDGER_KEYS:
            load.notes.append(f"{item.key_where or place}: {item.key} has no effect here")
        else:
            load.problems.append(f"{item.key_where or place}: {_unknown(item.key, {**own, **log})}")
        return
    if key is not None:
        if key.field in load.places and load.values.get(key.field) is not None:
            load.problems.append(f"{place}: {key.name} is set twice; first at {load.places[key.field]}")
            return
        load.places[key.field] = place
        try:
            load.values[key.field] = _parse(key, item.text)
        except BadValueError as error:
            load.problems += [f"{place}: {key.name}: {what}" for _, what in error.problems]
            return
    if setting is not None:
        try:
            setting.parse(item.text)
        except BadValueError as error:
            if key is None or setting.key in _SHARED:
                load.problems += [f"{place}: {setting.key}: {what}" for _, what in error.problems]
            return
        load.dledger[setting.key] = item.text
        load.places.setdefault(setting.key, place)


def load(path: str | os.PathLike[str] | None, overrides: Mapping[str, str]) -> BrokerConfig:
    """See `BrokerConfig.from_file`."""
    name = "" if path is None else os.fspath(path)
    state = _Load()
    own, log = _names()
    items: list[_Item] = []
    if path is not None:
        items, state.problems = _read(name)
    given = {own[k].name if k in own else k for k in overrides}
    items = [i for i in items if (own[i.key].name if i.key in own else i.key) not in given]
    items += [_Item(key, text, f"-D {key}") for key, text in overrides.items()]
    for item in items:
        _take(item, state, own, log)
    if "namesrv_addr" not in state.values and os.environ.get(_NAMESRV_VARIABLE):
        _take(_Item("namesrvAddr", os.environ[_NAMESRV_VARIABLE], f"environment:{_NAMESRV_VARIABLE}"), state, own, log)
    if not state.problems:
        state.problems += _together(state, name)
    if state.problems:
        raise ConfigError(list(dict.fromkeys(state.problems)))
    return BrokerConfig(**state.values, dledger_settings=state.dledger, notes=tuple(state.notes))


def _together(state: _Load, name: str) -> list[str]:
    """What values owe each other."""
    values, problems = state.values, []

    def where(field_name: str) -> str:
        return state.places.get(field_name) or (f"{name}:1:1" if name else "default")

    if not values.get("enable_dledger_commit_log"):
        role, broker_id = values.get("broker_role", BrokerRole.ASYNC_MASTER), values.get("broker_id", 0)
        if role is BrokerRole.SLAVE and broker_id == 0:
            problems.append(f"{where('broker_role')}: brokerRole: a SLAVE has a brokerId above 0")
        if role is not BrokerRole.SLAVE and broker_id != 0:
            problems.append(f"{where('broker_id')}: brokerId: {broker_id} is a slave's; {role.value} has brokerId 0")
        return problems
    for field_name, key in (
        ("dledger_group", "dLegerGroup"),
        ("dledger_peers", "dLegerPeers"),
        ("dledger_self_id", "dLegerSelfId"),
    ):
        if not values.get(field_name):
            problems.append(f"{where('enable_dledger_commit_log')}: enableDLegerCommitLog=true needs {key}")
    self_id = values.get("dledger_self_id", "")
    if self_id and not _DLEDGER_ID.fullmatch(self_id):
        problems.append(f'{where("dledger_self_id")}: dLegerSelfId: "{self_id}" is not a letter and a number, like n0')
    if values.get("max_message_size_bytes", 0) + MESSAGE_OVERHEAD_BYTES > _MAX_ENTRY_BYTES:
        problems.append(
            f"{where('max_message_size_bytes')}: maxMessageSize: {values['max_message_size_bytes']} bytes do not fit "
            f"an entry of the log; at most {_MAX_ENTRY_BYTES - MESSAGE_OVERHEAD_BYTES}"
        )
    if problems:
        return problems
    try:
        config = BrokerConfig(**values, dledger_settings=state.dledger)
        dledger_config(config)
    except ConfigError as error:
        problems += [_relocate(problem, state) for problem in error.problems]
    return problems


def _relocate(problem: str, state: _Load) -> str:
    """Give a problem of the embedded node's configuration its place in the broker's file."""
    match = _OVERRIDE_PLACE.match(problem)
    place = state.places.get(match[1]) if match else None
    if match is None or place is None:
        return problem
    return f"{place}:{problem[match.end() :].removeprefix(':')}"


def dledger_settings(config: BrokerConfig) -> dict[str, str]:
    """Return the embedded node's settings, as text by key.

    The file's own settings of the log win; what it does not say comes from the broker's keys as upstream maps them:
    ``mappedFileSizeCommitLog`` is the data segment's length, ``maxMessageSize`` (with room for the other fields) the
    largest entry.
    """
    settings = dict(config.dledger_settings)
    settings.setdefault("dLegerGroup", config.dledger_group)
    settings.setdefault("dLegerPeers", config.dledger_peers)
    settings.setdefault("dLegerSelfId", config.dledger_self_id)
    settings["storePathRootDir"] = config.store_path_root_dir
    settings["flushDiskType"] = config.effective_flush_disk_type.value
    settings.setdefault("mappedFileSizeForEntryData", str(config.mapped_file_size_commit_log_bytes))
    room = int(config.mapped_file_size_commit_log_bytes) - 56
    entry = min(config.max_message_size_bytes + MESSAGE_OVERHEAD_BYTES, room)
    settings.setdefault("maxEntryBytes", str(entry))
    settings.setdefault("maxBatchBytes", str(max(entry, _MIN_BATCH_BYTES)))
    return settings


def dledger_config(config: BrokerConfig) -> DLedgerConfig:
    """Return the embedded node's configuration.

    Raises:
        ConfigError: values that do not go together.
    """
    return DLedgerConfig.from_file(None, dledger_settings(config), env={})
