from __future__ import annotations

import pytest

from dledger.storage.filesystem import RealFileSystem
from dledger.storage.memory_filesystem import MemoryFileSystem


@pytest.fixture(params=["real", "memory"])
def fs(request):
    """Both file systems keep the same contract."""
    return RealFileSystem() if request.param == "real" else MemoryFileSystem()


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "dledger-n0")
