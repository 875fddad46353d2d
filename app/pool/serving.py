"""A process's own model from its loading to its loss; shared by the single process, the engine process and tests."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..errors import LoadCancelled, StartError
from .model import LoadedModel
from .pool import OpenModel, Pool

logger = logging.getLogger(__name__)


async def serve_model(
    pool: Pool,
    open_model: OpenModel,
    *,
    on_loaded: Callable[[LoadedModel], None] = lambda model: None,
    on_ready: Callable[[LoadedModel], None] = lambda model: None,
) -> Exception | None:
    """Load a model and serve it until an engine of the pool is beyond repair; without such a failure, for ever.

    Returns the error that ended it, or None if loading was cancelled.
    """
    try:
        pooled = await pool.load(open_model, on_loaded=on_loaded)
    except LoadCancelled:
        return None
    except Exception as error:
        if not isinstance(error, StartError):
            logger.exception("Loading failed unexpectedly.")
        return error
    on_ready(pooled.model)
    return await pool.until_lost()
