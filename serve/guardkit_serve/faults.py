"""Faults of this server itself, told to its log."""

from __future__ import annotations

import logging
import traceback

LOG = logging.getLogger("guardkit.serve")


def told(error: Exception, where: str) -> None:
    """Log lines of code and no texts: the error's own message might hold some."""
    trace = "".join(traceback.format_tb(error.__traceback__))
    LOG.error("a fault in the server (%s): %s\n%s", where, type(error).__name__, trace)
