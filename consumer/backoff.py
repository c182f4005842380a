"""How long to wait before what failed is tried again."""

import random

FIRST_PAUSE_S = 0.5


def backoff_s(failures: int, longest_s: float) -> float:
    """Seconds to wait after so many failures in a row: doubling, bounded, spread by a half."""
    pause_s: float = min(longest_s, FIRST_PAUSE_S * 2 ** min(failures - 1, 16))
    return pause_s * random.uniform(0.5, 1.0)
