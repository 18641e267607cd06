"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SET_UP_AGAIN = "run `make setup`"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""
    """What to do; empty where all is well."""
