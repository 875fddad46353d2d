"""`Retry-After` of refused requests."""

from __future__ import annotations

import random

_SOONEST_SECONDS = 0.1


def retry_after_seconds(wait_seconds: float) -> float:
    """When to come again after the load that is predicted to last `wait_seconds`: about then, and not all at once.

    Up to a quarter more or less, at random: clients that were sent away together must not come back together.
    """
    return max(_SOONEST_SECONDS, wait_seconds) * random.uniform(0.75, 1.25)
