"""Seeds: each use derives its own from (seed, purpose, id), so that results do not depend on the number of workers or the order."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed of its own for each use of the run's seed."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
