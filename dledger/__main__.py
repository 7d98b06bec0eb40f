"""``python -m dledger``: the ``dledger`` command."""

from __future__ import annotations

from dledger.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
