"""Pictures that nobody corrupted and networks fail on: ImageNet-R, ImageNet-A and ImageNet-O.

    ROOT/imagenet-r/n01443537/*.jpg   200 of ImageNet's classes, drawn, sewn, carved
         imagenet-a/n01498041/*.jpg   200 of them, photographs that a ResNet-50 gets wrong
         imagenet-o/n01443537/*.JPEG  photographs of no class, by the one they are mistaken for

Hendrycks et al., "The Many Faces of Robustness", ICCV 2021, and "Natural Adversarial Examples",
CVPR 2021: answers are restricted to the 200 classes, and the softmax is over these alone.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.data import open_tree
from pipelines.evaluation.metrics import (
    aupr,
    auroc,
    aurra,
    calibration_error,
    false_positives_at,
)
from pipelines.evaluation.pictures import Chosen, Pictures
from pipelines.evaluation.request import Evaluation, MissingDataError
from pipelines.evaluation.sets import set_of

CLASSES = 200


def renditions(evaluation: Evaluation) -> dict[str, Any]:
    """Return error and calibration on ImageNet-R."""
    return _restricted(evaluation, "r")


def natural_adversaries(evaluation: Evaluation) -> dict[str, Any]:
    """Return error and calibration on ImageNet-A."""
    return _restricted(evaluation, "a")


def _restricted(evaluation: Evaluation, suite: str) -> dict[str, Any]:
    pictures, labels, outputs = _open(evaluation, suite)
    evaluation.meter.begin(len(pictures))
    answers = evaluation.classifier.answer(pictures, outputs=outputs)
    right = answers.predicted == labels
    return {
        "error": float((~right).mean()),
        "rms": calibration_error(answers.confidence, right),
        "aurra": aurra(answers.confidence, right),
        "n": len(labels),
    }


def natural_outliers(evaluation: Evaluation) -> dict[str, Any]:
    """Return how well confidence tells ImageNet-O from the test pictures of its 200 classes."""
    pictures, _, outputs = _open(evaluation, "o")
    test = evaluation.data.need_test()
    usual = np.flatnonzero(np.isin(test.labels, outputs))
    if len(usual) == 0:
        raise MissingDataError(
            "no picture of the test set is of ImageNet-O's classes; evaluate ImageNet's "
            "validation set"
        )
    evaluation.meter.begin(len(usual) + len(pictures))
    inside = evaluation.classifier.answer(Chosen(test.pictures, usual), outputs=outputs)
    outside = evaluation.classifier.answer(pictures, outputs=outputs)
    scores = -inside.confidence, -outside.confidence
    return {
        "auroc": auroc(*scores),
        "aupr": aupr(*scores),
        "fpr95": false_positives_at(*scores),
        "n": len(pictures),
        "n_usual": len(usual),
    }


def _open(
    evaluation: Evaluation, suite: str
) -> tuple[Pictures, NDArray[np.int64], NDArray[np.int64]]:
    data = evaluation.data
    folder, _ = set_of(data, suite)
    pictures, labels, outputs = open_tree(folder, data.resized, data)
    if len(outputs) != CLASSES:
        raise PipelineError(
            f"{folder} has {len(outputs)} classes, and the set has {CLASSES}, over which the "
            "softmax is; unpack it again"
        )
    return pictures, labels, outputs
