"""Messages in fewer and plainer words."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["plain_words"]

_CONNECT_NOISE: Final = re.compile(
    r"(?:\S+: )?(?:UNAVAILABLE: )?failed to connect to all addresses; last error: [A-Z_]+: \S+ "
    r"Failed to connect to remote host: (?:connect: )?([^;()]+?)(?: \(\d+\))?(?=[;)]|$)"
)


def plain_words(text: str) -> str:
    """Return a message with gRPC's account of a refused connection cut to what was the matter."""
    return _CONNECT_NOISE.sub(lambda match: match[1].strip().lower(), text)
