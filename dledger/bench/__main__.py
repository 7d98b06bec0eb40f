"""``python -m dledger.bench``: the suite, its report, and the processes that it starts."""

from __future__ import annotations

from dledger.bench.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
