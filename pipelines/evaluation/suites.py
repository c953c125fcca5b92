"""Run the evaluation suites of the paper: one function per suite, among them PGD attacks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipelines.errors import PipelineError
from pipelines.evaluation.corruptions import (
    evaluate_corruptions,
    evaluate_corruptions_bar,
    evaluate_perturbations,
)
from pipelines.evaluation.data import TEST_FOLDERS, EvaluationData, locate_test_set, why_no_test_set
from pipelines.evaluation.folders import (
    IMAGENET,
    WITH_FOLDERS,
    MissingDataError,
    Notices,
    holds_images,
    missing_sets,
)
from pipelines.evaluation.images import Subset
from pipelines.evaluation.metrics import measure, scaled_confidence, tune_temperature
from pipelines.evaluation.ood import evaluate_imagenet_o, evaluate_ood, evaluate_restricted
from pipelines.evaluation.predictions import Evaluation, Meter, Predictions
from pipelines.provenance import provenance
from pipelines.shards.images import class_folders
from pipelines.shards.remote import RemoteShards
from pipelines.system.files import file_sha256
from pipelines.system.masking import masked_values


def evaluate_adversarial(evaluation: Evaluation) -> dict[str, Any]:
    """Return the error under PGD on evenly spaced test images."""
    classifier, test = evaluation.classifier, evaluation.data.require_test()
    n = len(test.images)
    n_attacked = min(evaluation.adversarial_images or n, n)
    attacked = np.arange(n_attacked) * n // n_attacked
    evaluation.meter.begin(n_attacked)

    def attack(images: Tensor, positions: range) -> Tensor:
        indices = attacked[positions.start : positions.stop]
        return pgd(
            classifier.logits,
            images,
            torch.from_numpy(test.labels[indices]).to(images.device),
            start=_random_starts(evaluation.seed, indices.tolist(), images),
            epsilon=evaluation.epsilon / 255,
            step=evaluation.epsilon / 4 / 255,
            reference_quirk=evaluation.pgd_reference_quirk,
        )

    predictions = classifier.predict(Subset(test.images, attacked), attack=attack)
    return {
        **measure("adversarial", correct=predictions.predicted == test.labels[attacked]),
        "images": n_attacked,
        "of_images": n,
        "epsilon": evaluation.epsilon,
        "reference_quirk": evaluation.pgd_reference_quirk,
    }


def _random_starts(seed: int, indices: Sequence[int], images: Tensor) -> Tensor:
    """Draw the start of each image from its index, independent of batches and processes."""
    shape = images.shape[1:]
    starts = [
        np.random.Generator(np.random.Philox(key=[seed, index])).random(shape, np.float32)
        for index in indices
    ]
    return torch.from_numpy(np.stack(starts)).to(images.device)


def pgd(
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    start: Tensor,
    epsilon: float = 2 / 255,
    step: float = 0.5 / 255,
    steps: int = 20,
    reference_quirk: bool = False,
) -> Tensor:
    """Return adversarial images found by projected gradient descent (Madry et al., ICLR 2018).

    The attack is untargeted, bounded in the L-infinity norm, and starts at a random point of the
    epsilon ball. The defaults are the PixMix paper's for CIFAR.

    Args:
        classify: maps images (B, 3, H, W) float32 in 0..1 to logits (B, classes).
        images: (B, 3, H, W) float32 in 0..1.
        labels: (B,) int64.
        start: shape of images, 0..1; position of the start in the epsilon ball.
        epsilon: maximum change of a value.
        step: step size.
        steps: number of steps.
        reference_quirk: whether to centre the ball at the random start, before it is clamped to
            0..1, as the released code does. Its images are up to 2 epsilon away from the original;
            use this to compare with published results.

    Returns:
        (B, 3, H, W) float32 in 0..1, without a gradient.
    """
    started = images + epsilon * (2 * start - 1)
    centre = started if reference_quirk else images
    low, high = centre - epsilon, centre + epsilon
    attacked = started if reference_quirk else started.clamp(0, 1)
    for _ in range(steps):
        attacked = attacked.detach().requires_grad_()
        loss = functional.cross_entropy(classify(attacked), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        moved = attacked.detach() + step * gradient.sign()
        attacked = torch.minimum(torch.maximum(moved, low), high).clamp(0, 1)
    return attacked.detach()


GENERAL_SUITES = ("clean", "calibration", "c", "c-bar", "p", "adversarial", "ood")
"""Suites for every dataset."""

IMAGENET_SUITES = ("r", "a", "o")
"""Suites only for ImageNet's classes."""

SUITES = GENERAL_SUITES + IMAGENET_SUITES


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """The results of an evaluation.

    Attributes:
        values: suite -> key -> value.
        missing: error of each suite whose data are missing.
        failed: error of each suite whose data are damaged.
    """

    values: Mapping[str, Mapping[str, Any]]
    missing: Mapping[str, str]
    failed: Mapping[str, str]


def suites_for(evaluation: Evaluation) -> tuple[str, ...]:
    """Return the suites that exist for the dataset of an evaluation."""
    return SUITES if evaluation.data.name == IMAGENET else GENERAL_SUITES


def missing_inputs(root: Path | RemoteShards, suites: Sequence[str] | None) -> dict[str, str]:
    """Return the error of each requested suite whose folder is missing; no file is read.

    Args:
        root: the folder of the datasets, or the test set at a URL.
        suites: suites requested by name; None if none was.

    Raises:
        PipelineError: if the folder holds no dataset at all.
        OSError: if a folder cannot be read.
    """
    located = locate_test_set(root, Notices())
    if isinstance(root, RemoteShards) or located.found:
        return missing_sets(located.root, located.name, suites or ())
    absent = missing_sets(root, IMAGENET, WITH_FOLDERS)
    if len(absent) < len(WITH_FOLDERS):
        return {suite: absent[suite] for suite in suites or () if suite in absent}
    # The class folders of other datasets are recognized later, by the class names of the network.
    names = [name for name in class_folders(root) if name not in TEST_FOLDERS]
    if not any(holds_images(root / name) for name in names):
        raise PipelineError(why_no_test_set(root))
    return {}


def evaluate(
    evaluation: Evaluation,
    suites: Sequence[str] | None = None,
    *,
    progress: Callable[[str, int, int], None] = lambda _suite, _done, _total: None,
) -> EvaluationResults:
    """Run suites and return their results.

    If the data of a suite are missing or damaged, the error is part of the result and the other
    suites still run. With several processes damaged data raise instead, because not every process
    may see the damage.

    Args:
        evaluation: the network, its data and the settings.
        suites: names in `SUITES`; None for those of `suites_for`.
        progress: called with the name of a suite, the images predicted so far and their total.

    Raises:
        PipelineError: with several processes, if data are damaged.
        ValueError: if a suite is unknown.
    """
    chosen = suites_for(evaluation) if suites is None else suites
    unknown = [name for name in chosen if name not in SUITES]
    if unknown:
        raise ValueError(f"unknown suite {unknown[0]!r}; use {', '.join(SUITES)}")
    classifier = evaluation.classifier
    several = classifier.processes.world.size > 1
    meter = Meter(show=progress, processes=classifier.processes.world.size)
    evaluation = replace(evaluation, meter=meter, classifier=replace(classifier, count=meter.add))
    shared = _Shared(evaluation, keep_logits="calibration" in chosen)
    values: dict[str, Mapping[str, Any]] = {}
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in chosen:
        meter.suite = name
        try:
            values[name] = _SUITES[name](shared)
        except MissingDataError as error:
            missing[name] = str(error)
        except (PipelineError, OSError) as error:
            if several:
                raise
            failed[name] = str(error)
            if isinstance(error, OSError):
                where = f"{error.filename}: " if error.filename else ""
                failed[name] = f"{where}{error.strerror or error}"
    return EvaluationResults(values=values, missing=missing, failed=failed)


@dataclass(frozen=True)
class _Shared:
    """An evaluation and the predictions for the test set that several suites share."""

    evaluation: Evaluation
    keep_logits: bool

    @cached_property
    def predictions(self) -> Predictions:
        """Predictions for the test set."""
        test = self.evaluation.data.require_test()
        self.evaluation.meter.begin(len(test.images))
        return self.evaluation.classifier.predict(test.images, logits=self.keep_logits)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of the test set, (n,)."""
        return self.evaluation.data.require_test().labels

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction for the test set is correct, (n,)."""
        correct: NDArray[np.bool_] = self.predictions.predicted == self.labels
        return correct


def _evaluate_clean(shared: _Shared) -> dict[str, Any]:
    return {**measure("clean", correct=shared.correct), "n": len(shared.labels)}


def _evaluate_calibration(shared: _Shared) -> dict[str, float]:
    """Return the calibration metrics, also after temperature scaling.

    Each half of the test set is scaled with the temperature tuned on the other half. The halves are
    the even and the odd positions in storage order, so shards in another order have other halves
    and a slightly different temperature.
    """
    predictions, labels = shared.predictions, shared.labels
    scaled = temperature = None
    if predictions.logits is not None and len(labels) > 1:
        halves = np.arange(len(labels)) % 2
        scaled = np.empty_like(predictions.confidence)
        temperatures = []
        for half in range(2):
            own, other = halves == half, halves != half
            temperatures.append(tune_temperature(predictions.logits[other], labels[other]))
            scaled[own] = scaled_confidence(predictions.logits[own], temperatures[-1])
        temperature = float(np.mean(temperatures))
    return {
        **measure(
            "calibration",
            confidence=predictions.confidence,
            correct=shared.correct,
            scaled_confidence=scaled,
        ),
        **({} if temperature is None else {"temperature": temperature}),
    }


_SUITES: Mapping[str, Callable[[_Shared], dict[str, Any]]] = {
    "clean": _evaluate_clean,
    "calibration": _evaluate_calibration,
    "c": lambda shared: evaluate_corruptions(shared.evaluation),
    "c-bar": lambda shared: evaluate_corruptions_bar(shared.evaluation),
    "p": lambda shared: evaluate_perturbations(shared.evaluation),
    "adversarial": lambda shared: evaluate_adversarial(shared.evaluation),
    "ood": lambda shared: evaluate_ood(shared.evaluation, shared.predictions.confidence),
    "r": lambda shared: evaluate_restricted(shared.evaluation, "r"),
    "a": lambda shared: evaluate_restricted(shared.evaluation, "a"),
    "o": lambda shared: evaluate_imagenet_o(shared.evaluation),
}


def evaluation_provenance(
    checkpoints: Mapping[str, Path], data: EvaluationData, *, world_size: int, seconds: float
) -> dict[str, Any]:
    """Return the provenance of results as JSON values, with secrets masked.

    Args:
        checkpoints: checkpoint file of each network, by name.
        data: the evaluated data.
        world_size: number of processes.
        seconds: duration of the evaluation.

    Raises:
        OSError: if a checkpoint cannot be read.
    """
    values: dict[str, Any] = masked_values(
        {
            **msgspec.to_builtins(provenance(world_size=world_size)),
            "seconds": round(seconds, 3),
            "checkpoints": {name: file_sha256(path) for name, path in checkpoints.items()},
            "data": None if data.test is None else data.test.sha256,
        }
    )
    return values
