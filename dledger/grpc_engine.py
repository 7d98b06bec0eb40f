"""Which of its two engines gRPC runs on, chosen before it starts.

gRPC's C core moves the bytes of a message through a pool of threads (its "event engine"), or by the thread that polls
anyway. In Python every further thread on the way is a hand-over of the interpreter's lock: a message of a stream costs
a quarter more time and CPU on the pool (docs/performance.md has the figures). The choice is an environment variable
that gRPC reads once, for the whole process; so the processes that dledger itself starts make it, and a program that
embeds dledger may (`prefer_polling` before anything imports grpc).
"""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from typing import Final

__all__ = ["prefer_polling"]

_VARIABLE: Final = "GRPC_EXPERIMENTS"
_VALUE: Final = "-event_engine_client,-event_engine_listener,-event_engine_for_all_other_endpoints"
_LAST_KNOWN: Final = (1, 85)
"""Of these versions it is known that they have the choice. A version that lacks it complains on standard error."""
_FIRST_KNOWN: Final = (1, 76)


def prefer_polling() -> bool:
    """Have gRPC work without its pool of threads. Returns whether it will.

    Does nothing where the user has set ``GRPC_EXPERIMENTS``, where grpc is imported already, or for versions of grpcio
    that were not tried.
    """
    if _VARIABLE in os.environ or "grpc" in sys.modules or not _FIRST_KNOWN <= _release() <= _LAST_KNOWN:
        return False
    os.environ[_VARIABLE] = _VALUE
    return True


def _release() -> tuple[int, ...]:
    """Return the installed grpcio's (major, minor), empty if unknown, without importing it or the slow metadata."""
    spec = find_spec("grpc")
    if spec is None or spec.origin is None:
        return ()
    try:
        with open(os.path.join(os.path.dirname(spec.origin), "_grpcio_metadata.py"), encoding="ascii") as metadata:
            text = metadata.read()
    except OSError:
        return ()
    found = re.search(r"(\d+)\.(\d+)\.", text)
    return (int(found[1]), int(found[2])) if found else ()
