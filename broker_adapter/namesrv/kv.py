"""The name server's key-value store: small, in memory, on disk after every change."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from broker_adapter.remoting.codes import ResponseCode
from broker_adapter.remoting.errors import CommandError

__all__ = ["NAMESPACE_ORDER_TOPIC_CONFIG", "KvStore"]

NAMESPACE_ORDER_TOPIC_CONFIG: Final = "ORDER_TOPIC_CONFIG"
_MAX_ENTRIES: Final = 100_000


class KvStore:
    """namespace → key → value, as upstream's ``kvConfig.json``. ``path`` None: memory only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._table: dict[str, dict[str, str]] = {}
        if path is not None and path.exists():
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            table = json.loads(path.read_text(encoding="utf-8"))["configTable"]
            self._table = {str(n): {str(k): str(v) for k, v in kv.items()} for n, kv in table.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"{path} is damaged: {error}") from None

    def get(self, namespace: str, key: str) -> str | None:
        return self._table.get(namespace, {}).get(key)

    def namespace(self, namespace: str) -> dict[str, str]:
        """Return all of a namespace; empty where there is none."""
        return dict(self._table.get(namespace, {}))

    def put(self, namespace: str, key: str, value: str) -> None:
        """Set a key and write the file."""
        if sum(map(len, self._table.values())) >= _MAX_ENTRIES and self.get(namespace, key) is None:
            raise CommandError(ResponseCode.SYSTEM_ERROR, f"the KV store holds {_MAX_ENTRIES} keys; it is full")
        self._table.setdefault(namespace, {})[key] = value
        self._save()

    def delete(self, namespace: str, key: str) -> None:
        """Remove a key, which need not exist, and write the file."""
        if self._table.get(namespace, {}).pop(key, None) is not None:
            self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"configTable": self._table}, file, ensure_ascii=False, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
