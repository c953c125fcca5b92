"""The safety measures of the paper, suite by suite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.anomalies import anomaly
from pipelines.evaluation.answers import Answers
from pipelines.evaluation.attacks import pgd
from pipelines.evaluation.corrupted import corrupted, corrupted_bar
from pipelines.evaluation.data import PLACES, locate, why_no_test_set
from pipelines.evaluation.metrics import (
    aurra,
    calibration_error,
    soft_f1,
    tempered_confidence,
    tune_temperature,
)
from pipelines.evaluation.natural import natural_adversaries, natural_outliers, renditions
from pipelines.evaluation.perturbed import perturbed
from pipelines.evaluation.pictures import Chosen
from pipelines.evaluation.request import IMAGENET, Evaluation, Meter, MissingDataError
from pipelines.evaluation.sets import WITH_FOLDERS, missing_sets
from pipelines.evaluation.trees import Notices, class_folders, holds_images

OF_ANY = ("clean", "calibration", "c", "c-bar", "p", "adversarial", "anomaly")
"""Suites for pictures of any kind."""

OF_IMAGENET = ("r", "a", "o")
"""Suites for ImageNet's classes alone."""

SUITES = OF_ANY + OF_IMAGENET


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What came of the suites.

    values: numbers by name, by suite. missing: a line for each suite that lacks its data; failed:
    one for each whose data are there and are not what they should be.
    """

    values: Mapping[str, Mapping[str, Any]]
    missing: Mapping[str, str]
    failed: Mapping[str, str]


def suites_for(evaluation: Evaluation) -> tuple[str, ...]:
    """Return the suites that the data's kind has."""
    return SUITES if evaluation.data.name == IMAGENET else OF_ANY


def missing_inputs(root: Path, suites: Sequence[str] | None) -> dict[str, str]:
    """Return for each suite that is asked for and lacks its folder what to do, by a look at names.

    Args:
        root: the folder.
        suites: those that are asked for by name, or None.

    Raises:
        PipelineError: if there is nothing at all that a network can be evaluated on.
        OSError: if a folder cannot be read.
    """
    located = locate(root, Notices())
    if located.found:
        return missing_sets(located.root, located.name, suites or ())
    absent = missing_sets(root, IMAGENET, WITH_FOLDERS)
    if len(absent) < len(WITH_FOLDERS):
        return {suite: absent[suite] for suite in suites or () if suite in absent}
    # Class folders that only the network knows by name are recognized when it is loaded.
    names = [name for name in class_folders(root, Notices()) if name not in PLACES]
    if not any(holds_images(root / name) for name in names):
        raise PipelineError(why_no_test_set(root))
    return {}


def evaluate(
    evaluation: Evaluation,
    suites: Sequence[str] | None = None,
    *,
    progress: Callable[[str, int, int], None] = lambda _suite, _done, _total: None,
) -> Findings:
    """Run suites and return what was found.

    One without its data, or with damaged data, is named, and the others are run all the same: of
    several processes, which might not see the same damage, all end with it.

    Args:
        evaluation: what, and on what.
        suites: of `SUITES`; None for those of `suites_for`.
        progress: called with a suite's name, how many of its images are answered, and all of them.

    Raises:
        PipelineError: in one of several processes, if data are not what they should be.
        ValueError: for a suite that is none.
    """
    chosen = suites_for(evaluation) if suites is None else suites
    unknown = [name for name in chosen if name not in SUITES]
    if unknown:
        raise ValueError(f"no suite is named {unknown[0]!r}; give of {', '.join(SUITES)}")
    classifier = evaluation.classifier
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
        except PipelineError as error:
            if classifier.processes.world.size > 1:
                raise
            failed[name] = str(error)
        except OSError as error:
            if classifier.processes.world.size > 1:
                raise
            where = f"{error.filename}: " if error.filename else ""
            failed[name] = f"{where}{error.strerror or error}"
    return Findings(values=values, missing=missing, failed=failed)


@dataclass(frozen=True)
class _Run:
    """An evaluation, and the answers to the test set, which several suites want."""

    evaluation: Evaluation
    keep_logits: bool

    @cached_property
    def clean(self) -> Answers:
        """Answer the test set."""
        test = self.evaluation.data.need_test()
        self.evaluation.meter.begin(len(test.pictures))
        return self.evaluation.classifier.answer(test.pictures, logits=self.keep_logits)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The outputs that would be right."""
        return self.evaluation.data.need_test().labels


def _clean(run: _Run) -> dict[str, Any]:
    return {"error": run.clean.error(run.labels), "n": len(run.labels)}


def _calibration(run: _Run) -> dict[str, float]:
    """Return calibration errors, AURRA and soft F1; and RMS by temperatures of the other half.

    The halves are the even and the odd places of the test set as it is stored: of shards whose
    images were shuffled, another shuffling has other halves and a slightly other temperature.
    """
    answers, labels = run.clean, run.labels
    right = answers.predicted == labels
    found = {
        "rms": calibration_error(answers.confidence, right),
        "mad": calibration_error(answers.confidence, right, norm="mad"),
        "max": calibration_error(answers.confidence, right, norm="max"),
        "aurra": aurra(answers.confidence, right),
        "soft_f1": soft_f1(answers.confidence, right),
    }
    if answers.logits is not None and len(labels) > 1:
        halves = np.arange(len(labels)) % 2
        tempered = np.empty_like(answers.confidence)
        temperatures = []
        for half in range(2):
            there, other = halves == half, halves != half
            temperatures.append(tune_temperature(answers.logits[other], labels[other]))
            tempered[there] = tempered_confidence(answers.logits[there], temperatures[-1])
        found["temperature"] = float(np.mean(temperatures))
        found["rms_tempered"] = calibration_error(tempered, right)
    return found


def _adversarial(run: _Run) -> dict[str, Any]:
    """Return the error under PGD."""
    evaluation, classifier = run.evaluation, run.evaluation.classifier
    test = evaluation.data.need_test()
    n = len(test.pictures)
    wanted = min(evaluation.adversarial_images or n, n)
    attacked = np.arange(wanted) * n // wanted
    evaluation.meter.begin(wanted)
    device = classifier.processes.device

    def attack(images: torch.Tensor, numbers: range) -> torch.Tensor:
        chosen = attacked[numbers.start : numbers.stop]
        return pgd(
            classifier.logits,
            images,
            torch.from_numpy(test.labels[chosen]).to(device),
            start=_starts(evaluation.seed, chosen.tolist(), images),
            epsilon=evaluation.epsilon / 255,
            step=evaluation.epsilon / 4 / 255,
            reference_quirk=evaluation.pgd_reference_quirk,
        )

    answers = classifier.answer(Chosen(pictures=test.pictures, numbers=attacked), change=attack)
    return {
        "error": answers.error(test.labels[attacked]),
        "images": wanted,
        "of_images": n,
        "epsilon": evaluation.epsilon,
        "reference_quirk": evaluation.pgd_reference_quirk,
    }


def _starts(seed: int, numbers: Sequence[int], images: torch.Tensor) -> torch.Tensor:
    """Draw random starts, each picture's from its own number: batches and processes do not show."""
    shape = images.shape[1:]
    drawn = [
        np.random.Generator(np.random.Philox(key=[seed, number])).random(shape, np.float32)
        for number in numbers
    ]
    return torch.from_numpy(np.stack(drawn)).to(images.device)


_SUITES: Mapping[str, Callable[[_Run], dict[str, Any]]] = {
    "clean": _clean,
    "calibration": _calibration,
    "c": lambda run: corrupted(run.evaluation),
    "c-bar": lambda run: corrupted_bar(run.evaluation),
    "p": lambda run: perturbed(run.evaluation),
    "adversarial": _adversarial,
    "anomaly": lambda run: anomaly(run.evaluation, run.clean.confidence),
    "r": lambda run: renditions(run.evaluation),
    "a": lambda run: natural_adversaries(run.evaluation),
    "o": lambda run: natural_outliers(run.evaluation),
}
