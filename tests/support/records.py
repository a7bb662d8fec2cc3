"""Records of the log, as loggers make them."""

import logging
from typing import Any


def record(
    message: object = "hello",
    *args: object,
    extra: dict[str, Any] | None = None,
    level: int = logging.INFO,
    name: str = "gateway.test",
    created: float | None = None,
    exc_info: Any = None,
) -> logging.LogRecord:
    """Return a record as a logger would make it."""
    made = logging.getLogger(name).makeRecord(name, level, "x.py", 1, message, args, exc_info, extra=extra)
    if created is not None:
        made.created = created
    return made
