"""Fields that every line of a process's log carries: which run, stage, step and rank it is about.

    add_fields(run="smarthome", stage="rb-ft/classify", rank=3)

They are attributes of every `logging.LogRecord` made from then on, whoever logs. Plain text does not show them; a formatter that writes
JSON does, as Ray's where RAY_LOGGING_CONFIG_ENCODING=JSON is set (docs/operations.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

_FIELDS: dict[str, str | int | float] = {}


def add_fields(**fields: str | int | float) -> None:
    """From now on these too, in the place of those of the same names; for the whole process."""
    _FIELDS.update(fields)
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, _WithFields):
        logging.setLogRecordFactory(_WithFields(factory))


def fields() -> dict[str, str | int | float]:
    """Those that are set."""
    return dict(_FIELDS)


class _WithFields:
    def __init__(self, factory: Callable[..., logging.LogRecord]) -> None:
        self._factory = factory

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._factory(*args, **kwargs)
        for name, value in _FIELDS.items():
            record.__dict__.setdefault(name, value)
        return record
