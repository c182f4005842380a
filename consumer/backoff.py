"""How long to wait before what failed is tried again, and when to give up."""

import logging
import random
import time

from consumer.errors import BrokerError, WindowAbortedError
from consumer.metrics import Metrics

LOG = logging.getLogger("sedflow.daemon")

FIRST_PAUSE_S = 0.5
MAX_ABORTS_IN_A_ROW = 7
"""Two refusals of dead letters take five: librdkafka aborts once more after each."""
FIRST_ABORT_PAUSE_S = 0.2


def backoff_s(failures: int, longest_s: float) -> float:
    """Seconds to wait after so many failures in a row: doubling, bounded, spread by a half."""
    pause_s: float = min(longest_s, FIRST_PAUSE_S * 2 ** min(failures - 1, 16))
    return pause_s * random.uniform(0.5, 1.0)


def wait_or_give_up(aborts: int, error: WindowAbortedError, metrics: Metrics) -> None:
    """Pause after so many aborts in a row, longer each time. Raises BrokerError at the last."""
    metrics.commit_failures.inc()
    LOG.warning("window rolled back", extra={"fields": {"error": str(error), "aborts": aborts}})
    if aborts >= MAX_ABORTS_IN_A_ROW:
        told = f"expected a window to commit, got {aborts} aborts in a row: {error}"
        raise BrokerError(told) from error
    time.sleep(FIRST_ABORT_PAUSE_S * 2 ** (aborts - 1))
