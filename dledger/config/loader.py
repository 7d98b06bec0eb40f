"""Values from flags, environment, file and defaults, each with its origin, and every problem at once.

Knows the table of settings only; `DLedgerConfig` makes itself from what this returns.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from dledger.config.accepted import BROKER_KEYS, DLEDGER_KEYS
from dledger.config.conf_file import Assignment, parse_conf
from dledger.config.origin import Origin, OriginKind
from dledger.config.setting import Setting, environment_name
from dledger.config.values import BadValueError

__all__ = ["Loaded", "load_values", "sort_problems"]

_PLACE: Final = re.compile(r"(.*?):(\d+):(\d+): ", re.DOTALL)


@dataclass(slots=True)
class Loaded:
    """What was found: ``values`` of fields that could be read; ``other``: accepted keys without effect."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    other_origins: dict[str, Origin] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unreadable: bool = False
    """The file could not be read at all; what it would have set is not missed on top of that."""


def sort_problems(problems: Sequence[str]) -> list[str]:
    """Order by file, line and column; those without a line keep their order, last. None twice."""

    def place(problem: str) -> tuple[int, str, int, int]:
        match = _PLACE.match(problem)
        return (0, match[1], int(match[2]), int(match[3])) if match else (1, "", 0, 0)

    return sorted(dict.fromkeys(problems), key=place)


class _Names:
    """Spellings of the table: exact, and close ones for "did you mean"."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self.exact = {name: s for s in settings for name in s.names}
        accepted = [*DLEDGER_KEYS, *BROKER_KEYS]
        self.accepted = frozenset(accepted)
        self._by_lower = {name.lower(): name for name in [*accepted, *self.exact]}
        self._own_lower = {name.lower(): name for name in self.exact}

    def resolve(self, key: str) -> tuple[Setting | None, str | None]:
        """Return (setting, note). ``dLedger…`` for RocketMQ's odd ``dLeger…`` is taken, with a note."""
        if key in self.exact:
            return self.exact[key], None
        historical = key.replace("dLedger", "dLeger", 1)
        if historical in self.exact:
            return self.exact[historical], f'"{key}" is taken for RocketMQ\'s spelling "{historical}"'
        return None, None

    def unknown(self, key: str) -> str:
        """Say that ``key`` is unknown, and what may be meant: a setting of the log before a broker's key."""
        lowered = key.lower()
        for names in (self._own_lower, self._by_lower):
            close = difflib.get_close_matches(lowered, names, 1, 0.75)
            if close:
                return f'unknown key "{key}"; did you mean "{names[close[0]]}"?'
        return f'unknown key "{key}"; "dledger config explain" lists the keys'


@dataclass(slots=True)
class _Source:
    """Candidates of one rank: field → (origin, text)."""

    found: dict[str, Origin] = field(default_factory=dict)

    def add(self, setting: Setting, origin: Origin, problems: list[str]) -> None:
        earlier = self.found.get(setting.field)
        if earlier is None:
            self.found[setting.field] = origin
        elif earlier.text != origin.text:
            first = f"line {earlier.line}" if earlier.line else earlier.name
            problems.append(f'{origin.where()}: {setting.key} is set twice; {first} has "{earlier.text}"')


def _read_file(path: str, loaded: Loaded) -> list[Assignment]:
    try:
        with open(path, "rb") as file:
            content = file.read((1 << 20) + 1)
    except OSError as error:
        loaded.problems.append(f"{path}:1:1: cannot be read: {error.strerror or error}")
        loaded.unreadable = True
        return []
    assignments, problems = parse_conf(content, path)
    loaded.problems += problems
    return assignments


def _from_file(path: str, names: _Names, loaded: Loaded) -> _Source:
    source = _Source()
    for item in _read_file(path, loaded):
        setting, note = names.resolve(item.key)
        origin = Origin(OriginKind.FILE, path, item.line, item.value_column, item.value)
        if note:
            loaded.notes.append(f"{path}:{item.line}:{item.column}: {note}")
        if setting is not None:
            source.add(setting, origin, loaded.problems)
        elif item.key in names.accepted:
            loaded.other[item.key] = item.value
            loaded.other_origins[item.key] = origin
        else:
            loaded.problems.append(f"{path}:{item.line}:{item.column}: {names.unknown(item.key)}")
    return source


def _from_environment(env: Mapping[str, str], settings: Sequence[Setting], loaded: Loaded) -> _Source:
    source = _Source()
    for setting in settings:
        for name in setting.names:
            variable = environment_name(name)
            text = env.get(variable, "").strip()
            if text:
                source.add(setting, Origin(OriginKind.ENVIRONMENT, variable, text=text), loaded.problems)
    return source


def _from_flags(overrides: Mapping[str, str], names: _Names, loaded: Loaded) -> _Source:
    source = _Source()
    for key, text in overrides.items():
        setting, _ = names.resolve(key)
        origin = Origin(OriginKind.FLAG, key, text=text.strip())
        if setting is not None:
            source.add(setting, origin, loaded.problems)
        elif key in names.accepted:
            loaded.other[key] = text.strip()
            loaded.other_origins[key] = origin
        else:
            loaded.problems.append(f"-D {key}: {names.unknown(key)}")
    return source


def _take(setting: Setting, candidates: list[Origin], loaded: Loaded) -> None:
    """Read every candidate (a bad one is a problem even where it loses) and keep the best."""
    for rank, origin in enumerate(candidates):
        if not origin.text and setting.default not in (None, ()):
            loaded.problems.append(f"{origin.where()}: {setting.key} has no value")
            continue
        try:
            value = setting.parse(origin.text) if origin.text else setting.default
        except BadValueError as error:
            loaded.problems += [f"{origin.where(at)}: {setting.key}: {what}" for at, what in error.problems]
            continue
        if rank == 0:
            loaded.values[setting.field] = value
    loaded.origins[setting.field] = replace(candidates[0], overridden=tuple(candidates[1:]))


def load_values(
    settings: Sequence[Setting],
    path: str | None,
    overrides: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    *,
    required: Callable[[Setting], bool] = lambda setting: setting.required,
) -> Loaded:
    """Collect every setting's value: flag over environment over file over default.

    ``path``: the file, or None for none; ``overrides``: ``-D key=value``; ``env``: the environment (None: the
    process's own). Never raises for bad input: see ``Loaded.problems``.
    """
    loaded = Loaded()
    names = _Names(settings)
    sources = [
        _from_flags(overrides or {}, names, loaded),
        _from_environment(os.environ if env is None else env, settings, loaded),
        _from_file(path, names, loaded) if path is not None else _Source(),
    ]
    for setting in settings:
        candidates = [s.found[setting.field] for s in sources if setting.field in s.found]
        if candidates:
            _take(setting, candidates, loaded)
        elif not setting.required:
            loaded.values[setting.field] = setting.default
            loaded.origins[setting.field] = Origin(OriginKind.DEFAULT)
        elif required(setting) and not loaded.unreadable:
            place = f"{path}:1:1" if path is not None else environment_name(setting.key)
            loaded.problems.append(f"{place}: {setting.key} is required")
    return loaded
