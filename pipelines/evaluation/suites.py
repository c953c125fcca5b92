"""Adversaries: projected gradient descent (Madry et al., ICLR 2018), and the error under it.

The safety metrics of the paper, suite by suite.
"""

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
from pipelines.system.files import file_sha256
from pipelines.system.masking import masked_values


def evaluate_adversarial(evaluation: Evaluation) -> dict[str, Any]:
    """Return the error under PGD."""
    classifier, test = evaluation.classifier, evaluation.data.require_test()
    n = len(test.images)
    wanted = min(evaluation.adversarial_images or n, n)
    attacked = np.arange(wanted) * n // wanted
    evaluation.meter.begin(wanted)

    def attack(images: Tensor, numbers: range) -> Tensor:
        chosen = attacked[numbers.start : numbers.stop]
        return pgd(
            classifier.logits,
            images,
            torch.from_numpy(test.labels[chosen]).to(images.device),
            start=_starts(evaluation.seed, chosen.tolist(), images),
            epsilon=evaluation.epsilon / 255,
            step=evaluation.epsilon / 4 / 255,
            reference_quirk=evaluation.pgd_reference_quirk,
        )

    found = classifier.predict(Subset(test.images, attacked), change=attack)
    return {
        **measure("adversarial", correct=found.predicted == test.labels[attacked]),
        "images": wanted,
        "of_images": n,
        "epsilon": evaluation.epsilon,
        "reference_quirk": evaluation.pgd_reference_quirk,
    }


def _starts(seed: int, numbers: Sequence[int], images: Tensor) -> Tensor:
    """Draw random starts, each image's from its own number: batches and processes do not show."""
    shape = images.shape[1:]
    drawn = [
        np.random.Generator(np.random.Philox(key=[seed, number])).random(shape, np.float32)
        for number in numbers
    ]
    return torch.from_numpy(np.stack(drawn)).to(images.device)


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
    """Return adversarial images, each within epsilon of its original.

    Untargeted, bounded in the maximum norm, from a random start in the box. The defaults are the
    PixMix paper's for CIFAR.

    Args:
        classify: from images (B, 3, H, W) float32 in 0..1 to logits (B, classes).
        images: (B, 3, H, W) float32 in 0..1.
        labels: (B,) int64.
        start: like images, 0..1; position in the box to start from.
        epsilon: maximum change of a value.
        step: size of a step.
        steps: number of steps.
        reference_quirk: put the box around the random start, before it is clamped to 0..1, instead
            of around the image, as the released code does, whose images are up to 2 epsilon away:
            for comparison with published results.

    Returns:
        (B, 3, H, W) float32 in 0..1, without a gradient.
    """
    noised = images + epsilon * (2 * start - 1)
    centre = noised if reference_quirk else images
    low, high = centre - epsilon, centre + epsilon
    attacked = noised if reference_quirk else noised.clamp(0, 1)
    for _ in range(steps):
        attacked = attacked.detach().requires_grad_()
        loss = functional.cross_entropy(classify(attacked), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        moved = attacked.detach() + step * gradient.sign()
        attacked = torch.minimum(torch.maximum(moved, low), high).clamp(0, 1)
    return attacked.detach()


GENERAL_SUITES = ("clean", "calibration", "c", "c-bar", "p", "adversarial", "ood")
"""Suites for images of any kind."""

IMAGENET_SUITES = ("r", "a", "o")
"""Suites for ImageNet's classes alone."""

SUITES = GENERAL_SUITES + IMAGENET_SUITES


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """The results of an evaluation.

    values: results by name, by suite. missing: a line for each suite that lacks its data; failed:
    one for each whose data are damaged.
    """

    values: Mapping[str, Mapping[str, Any]]
    missing: Mapping[str, str]
    failed: Mapping[str, str]


def suites_for(evaluation: Evaluation) -> tuple[str, ...]:
    """Return the suites for the evaluation's data."""
    return SUITES if evaluation.data.name == IMAGENET else GENERAL_SUITES


def missing_inputs(root: Path, suites: Sequence[str] | None) -> dict[str, str]:
    """Return for each requested suite that lacks its folder what to do, judged by names alone.

    Args:
        root: the folder.
        suites: those that are requested by name, or None.

    Raises:
        PipelineError: if there is nothing at all to evaluate a network on.
        OSError: if a folder cannot be read.
    """
    located = locate_test_set(root, Notices())
    if located.found:
        return missing_sets(located.root, located.name, suites or ())
    absent = missing_sets(root, IMAGENET, WITH_FOLDERS)
    if len(absent) < len(WITH_FOLDERS):
        return {suite: absent[suite] for suite in suites or () if suite in absent}
    # Class folders that only the network knows by name are recognized when it is loaded.
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

    One whose data are missing or damaged is reported, and the others still run. Several processes
    might not see the same damage, so it ends all of them.

    Args:
        evaluation: the network, its data and the settings.
        suites: of `SUITES`; None for those of `suites_for`.
        progress: called with a suite's name, its images predicted so far, and all of them.

    Raises:
        PipelineError: in one of several processes, if data are damaged.
        ValueError: for an unknown suite.
    """
    chosen = suites_for(evaluation) if suites is None else suites
    unknown = [name for name in chosen if name not in SUITES]
    if unknown:
        raise ValueError(f"unknown suite {unknown[0]!r}; use {', '.join(SUITES)}")
    classifier = evaluation.classifier
    several = classifier.processes.world.size > 1
    meter = Meter(show=progress, processes=classifier.processes.world.size)
    evaluation = replace(evaluation, meter=meter, classifier=replace(classifier, count=meter.add))
    run = _Run(evaluation, keep_logits="calibration" in chosen)
    values: dict[str, Mapping[str, Any]] = {}
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in chosen:
        meter.suite = name
        try:
            values[name] = _SUITES[name](run)
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
class _Run:
    """An evaluation, and the predictions for the test set, which several suites need."""

    evaluation: Evaluation
    keep_logits: bool

    @cached_property
    def clean(self) -> Predictions:
        """Predict the test set."""
        test = self.evaluation.data.require_test()
        self.evaluation.meter.begin(len(test.images))
        return self.evaluation.classifier.predict(test.images, logits=self.keep_logits)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The outputs that are right."""
        return self.evaluation.data.require_test().labels

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which predictions are right."""
        correct: NDArray[np.bool_] = self.clean.predicted == self.labels
        return correct


def _clean(run: _Run) -> dict[str, Any]:
    return {**measure("clean", correct=run.correct), "n": len(run.labels)}


def _calibration(run: _Run) -> dict[str, float]:
    """Return the calibration metrics, each half scaled by the temperature tuned on the other half.

    The halves are the even and the odd positions of the test set as it is stored: another shuffling
    of its shards has other halves and a slightly different temperature.
    """
    found, labels = run.clean, run.labels
    scaled = temperature = None
    if found.logits is not None and len(labels) > 1:
        halves = np.arange(len(labels)) % 2
        scaled = np.empty_like(found.confidence)
        temperatures = []
        for half in range(2):
            here, other = halves == half, halves != half
            temperatures.append(tune_temperature(found.logits[other], labels[other]))
            scaled[here] = scaled_confidence(found.logits[here], temperatures[-1])
        temperature = float(np.mean(temperatures))
    return {
        **measure(
            "calibration",
            confidence=found.confidence,
            correct=run.correct,
            scaled_confidence=scaled,
        ),
        **({} if temperature is None else {"temperature": temperature}),
    }


_SUITES: Mapping[str, Callable[[_Run], dict[str, Any]]] = {
    "clean": _clean,
    "calibration": _calibration,
    "c": lambda run: evaluate_corruptions(run.evaluation),
    "c-bar": lambda run: evaluate_corruptions_bar(run.evaluation),
    "p": lambda run: evaluate_perturbations(run.evaluation),
    "adversarial": lambda run: evaluate_adversarial(run.evaluation),
    "ood": lambda run: evaluate_ood(run.evaluation, run.clean.confidence),
    "r": lambda run: evaluate_restricted(run.evaluation, "r"),
    "a": lambda run: evaluate_restricted(run.evaluation, "a"),
    "o": lambda run: evaluate_imagenet_o(run.evaluation),
}


def evaluation_provenance(
    checkpoints: Mapping[str, Path], data: EvaluationData, *, world_size: int, seconds: float
) -> dict[str, Any]:
    """Return the provenance of results, as plain JSON values without secrets.

    Args:
        checkpoints: file of each network, by its name.
        data: that the networks were evaluated on.
        world_size: processes of the evaluation.
        seconds: that it took.

    Raises:
        OSError: if a checkpoint cannot be read.
    """
    found: dict[str, Any] = masked_values(
        {
            **msgspec.to_builtins(provenance(world_size=world_size)),
            "seconds": round(seconds, 3),
            "checkpoints": {name: file_sha256(path) for name, path in checkpoints.items()},
            "data": None if data.test is None else data.test.sha256,
        }
    )
    return found
