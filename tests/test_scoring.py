"""Scores, features and tensors through the classifier, which ranks none of them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from app.backends import Batch, null_checkpoint
from app.backends.null import NullBackend
from app.batching import Schedule
from app.classifier import Classifier
from app.engine import InProcessEngine
from app.errors import InvalidParameter, ModelOutputInvalid
from app.metrics import Metrics
from app.pool import LoadedModel
from app.ranking import rank
from app.types import ModelIdentity, Outputs, Tensor, Want

pytestmark = pytest.mark.anyio


class NanInFeatures(NullBackend):
    """Answers with NaN among the features of tensors whose first value is 7."""

    def infer(self, batch: Batch, want: Want) -> Outputs:
        outputs = super().infer(batch, want)
        if outputs.features is not None:
            outputs.features[batch[:, 0, 0, 0] == 7] = np.nan
        return outputs


def tensor(level: float) -> Tensor:
    return np.full((3, 224, 224), level, np.float32)


async def test_scores_are_whole_and_nan_features_fail_alone() -> None:
    """A tensor's scores are those of all classes; a NaN among features fails that image alone; odd tensors are 422."""
    checkpoint, metrics = null_checkpoint(), Metrics()
    identity = ModelIdentity("null", "0" * 8)
    model_metrics = metrics.of_model(identity)
    engine = InProcessEngine(NanInFeatures(checkpoint), max_batch_size=4, max_queue=16)
    await engine.start()
    decoder: Any = SimpleNamespace(usable=True, waiting=0, lost=0, predicted_seconds=lambda *given: 0.0)
    classifier = Classifier(decoder, metrics)
    model = cast(
        LoadedModel,
        SimpleNamespace(
            engine=engine,
            preprocessing=checkpoint.preprocessing,
            identity=identity,
            labels=(),
            schedule=Schedule(16),
            metrics=model_metrics,
        ),
    )
    deadline = time.monotonic() + 60
    wanted = Want.SCORES | Want.FEATURES
    scored = await classifier.score(model, tensor(1), wanted, deadline)
    assert scored.outputs.scores.shape == (1000,)
    assert scored.outputs.features is not None
    assert scored.outputs.features.tolist() == [1.0] * 3
    assert scored.outputs.feature_maps is None
    assert rank(scored.outputs.scores, scored.outputs.activation, checkpoint.labels, 3)[0].probability > 0.5
    with pytest.raises(ModelOutputInvalid):
        await classifier.score(model, tensor(7), wanted, deadline)
    assert model_metrics.nan_outputs._value.get() == 1
    # Where its features are not wanted, nothing is wrong with it.
    assert (await classifier.score(model, tensor(7), Want.SCORES, deadline)).outputs.features is None
    for wrong in (tensor(np.nan), np.zeros((3, 8, 8), np.float32), np.zeros((3, 224, 1), np.float32)):
        with pytest.raises(InvalidParameter):
            await classifier.score(model, wrong, Want.SCORES, deadline)
    assert model.schedule.held == 0
    await engine.close()
