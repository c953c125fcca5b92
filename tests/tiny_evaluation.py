"""A network and images of three classes for the tests of evaluation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.evaluation.corruptions import (
    CIFAR_PERTURBATIONS,
    CORRUPTIONS,
    OVERLAPPING_OPERATIONS,
)
from pipelines.evaluation.data import EvaluationData, TestSet
from pipelines.evaluation.images import ArrayImages
from pipelines.evaluation.predictions import Classifier, Evaluation, Predictions, as_tensor
from pipelines.system.process_group import Processes
from pipelines.system.ranks import World

PERTURBATIONS = (*CIFAR_PERTURBATIONS, "spatter")


ALONE = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))


N = 12


class Brightness(nn.Module):
    """Classifies images as dark, medium or bright by their mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([-8 * mean, -3 * (mean - 0.0) ** 2, 8 * mean], 1)


def classifier(batch_size: int = 5) -> Classifier:
    return Classifier(
        module=Brightness().eval(), mean=(0.5,) * 3, std=(0.5,) * 3, processes=ALONE,
        batch_size=batch_size,
    )  # fmt: skip


def images_of(n: int = N, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    base = np.array([30, 128, 220])[labels][:, None, None, None]
    images = (base + rng.integers(-25, 26, (n, side, side, 3))).astype(np.uint8)
    return images, labels.astype(np.int64)


IMAGES, LABELS = images_of()


def data_of(root: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> EvaluationData:
    test = TestSet(images=ArrayImages(images), labels=labels)
    return EvaluationData(root=root, name="TINY", side=images.shape[1], transform=None, test=test)


def evaluation(root: Path, **changes: Any) -> Evaluation:  # noqa: ANN401
    return replace(Evaluation(classifier=classifier(), data=data_of(root)), **changes)


def write_corrupted(folder: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Write corruptions in CIFAR-C's layout that darken with severity, at different rates."""
    folder.mkdir(parents=True)
    written = {}
    for index, name in enumerate(names):
        severities = [
            (IMAGES * (1 - 0.1 * severity * (1 + index % 3) / 3)).astype(np.uint8)
            for severity in range(1, 6)
        ]
        written[name] = np.concatenate(severities)
        np.save(folder / f"{name}.npy", written[name])
    np.save(folder / "labels.npy", np.tile(LABELS, 5))
    return written


def predict_one_by_one(images: np.ndarray) -> Predictions:
    """Return predictions computed in batches of one image."""
    batch = as_tensor(images, torch.device("cpu"))
    softmax = torch.stack([classifier().logits(each[None])[0] for each in batch]).softmax(1)
    return Predictions(
        predicted=softmax.argmax(1).numpy(), confidence=softmax.max(1).values.numpy()
    )


MADE = {"seed": 0, "n": 200}


MADE_WORDS = "C made by pixmix-eval make-c, 200 images, ImageNet constants"


def write_made(folder: Path, **changes: object) -> None:
    write_corrupted(folder, CORRUPTIONS)
    (folder / "make-c.json").write_text(json.dumps({**MADE, **changes}))


def results_on_c(error: float, made: bool = False, overlap: bool = False) -> dict[str, Any]:
    summary = {"by": "pixmix-eval make-c", "images": 200, "constants": "ImageNet", "seed": 0}
    return {
        "clean": {"error": 0.1},
        "calibration": {"rms": 0.1, "rms_temperature_scaled": 0.1},
        "c": {
            "mean_error": error,
            "mean_rms": 0.2,
            **({"made": summary} if made else {}),
            **({"overlap": list(OVERLAPPING_OPERATIONS)} if overlap else {}),
        },
    }


def write_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 << 30)
