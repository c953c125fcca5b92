"""Consistency: sequences of frames in which an image is perturbed more and more.

    ROOT/CIFAR-10-P/gaussian_noise.npy      (n, frames, 32, 32, 3)
         ImageNet-P/tilt/n01440764/*.mp4    a video a sequence

Layouts: github.com/hendrycks/robustness.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import PipelineError
from pipelines.evaluation.corrupted import corruption_folder, open_images
from pipelines.evaluation.metrics import (
    ALEXNET_FLIPS,
    NOISES,
    flip_probability,
    mean_flip_rate,
)
from pipelines.evaluation.pictures import Stored
from pipelines.evaluation.request import IMAGENET, Evaluation, MissingDataError
from pipelines.evaluation.sets import remedy_for, set_of
from pipelines.evaluation.trees import list_videos
from pipelines.evaluation.videos import USUAL_FRAMES, answer_videos

CIFAR_PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "brightness", "translate",
    "rotate", "tilt", "scale",
)  # fmt: skip
"""Of CIFAR-P, without the tenth, in which its authors' script and generator differ."""


def perturbed(evaluation: Evaluation) -> dict[str, Any]:
    """Return how often answers flip in sequences of NAME-P, their mean and, of ImageNet-P, mFR."""
    data = evaluation.data
    large = data.name == IMAGENET
    names = tuple(ALEXNET_FLIPS) if large else (*CIFAR_PERTURBATIONS, evaluation.tenth_perturbation)
    folder, _ = set_of(data, "p")
    places = {
        name: corruption_folder(folder, name) if large else folder / f"{name}.npy" for name in names
    }
    absent = [place for place in places.values() if not place.exists()]
    if absent:
        raise MissingDataError(
            f"{folder} has no {absent[0].relative_to(folder)} ({len(absent)} of {len(names)} are "
            f"missing); {remedy_for(data.name, '-P')}"
        )
    flips = (_flips_of_videos if large else _flips_of_arrays)(evaluation, places)
    found: dict[str, Any] = {
        "mean_flip_probability": float(np.mean(list(flips.values()))),
        "flips": flips,
    }
    if large:
        found["mfr"] = mean_flip_rate(flips)
    return found


def _flips_of_arrays(evaluation: Evaluation, places: Mapping[str, Path]) -> dict[str, float]:
    arrays = {name: open_images(path, 5, evaluation.data.side) for name, path in places.items()}
    evaluation.meter.begin(sum(each.shape[0] * each.shape[1] for each in arrays.values()))
    flips = {}
    for name, sequences in arrays.items():
        n, frames = sequences.shape[:2]
        if n == 0 or frames < 2:
            raise PipelineError(
                f"{places[name]} has {n} sequences of {frames} frames; get it again"
            )
        flat = sequences.reshape(n * frames, *sequences.shape[2:])
        answers = evaluation.classifier.answer(Stored(flat))
        flips[name] = flip_probability(answers.predicted.reshape(n, frames), noise=name in NOISES)
    return flips


def _flips_of_videos(evaluation: Evaluation, places: Mapping[str, Path]) -> dict[str, float]:
    """Return by perturbation the mean over videos of each one's flip probability."""
    data = evaluation.data
    videos = {name: list_videos(place, data.notices) for name, place in places.items()}
    evaluation.meter.begin(USUAL_FRAMES * sum(map(len, videos.values())))
    flips = {}
    for name, files in videos.items():
        predicted = answer_videos(evaluation.classifier, files, data.resized.as_it_is())
        each = [flip_probability(frames[None], noise=name in NOISES) for frames in predicted]
        flips[name] = float(np.mean(each))
    return flips
