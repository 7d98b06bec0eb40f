"""The wheel is built once for all tests that need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shipping.wheel import build_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install -e '.[test]'")
    return build_wheel(tmp_path_factory.mktemp("wheel"))
