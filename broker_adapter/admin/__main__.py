"""``python -m broker_adapter.admin`` is ``mqadmin``."""

from __future__ import annotations

from broker_adapter.admin.main import main

if __name__ == "__main__":
    main()
