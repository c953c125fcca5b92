"""Folders in ImageNet's layouts, whose images have a color for each class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipelines.evaluation.data import open_evaluation_data
from pipelines.evaluation.folders import imagenet_classes
from pipelines.evaluation.metrics import ALEXNET_FLIPS
from pipelines.evaluation.predictions import Classifier, Evaluation
from pipelines.system.process_group import Processes
from pipelines.system.ranks import World

ALONE = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))


SIDE = 8


METADATA = {"classes": 1000, "crop": "resized", "image_size": SIDE, "evaluation_resize": 10}


WNIDS = imagenet_classes()


PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "imagenet_sample_200.tar"


CODES = np.array([[i % 10, i // 10 % 10, i // 100] for i in range(1000)]) * 25


class Colours(nn.Module):
    """Classifies images by their mean colour; output 0 is `favour` likelier than it should be."""

    def __init__(self, favour: float = 0.0, sharpness: float = 2.0) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(CODES / 255).float())
        self.favour, self.sharpness = favour, sharpness

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3))
        logits = -self.sharpness * 255 / 25 * (mean[:, None] - self.codes).square().sum(2).sqrt()
        logits[:, 0] += self.favour
        return logits


def colour_classifier(favour: float = 0.0, sharpness: float = 2.0) -> Classifier:
    return Classifier(
        module=Colours(favour, sharpness).eval(), mean=(0.0,) * 3, std=(1.0,) * 3,
        processes=ALONE, batch_size=7,
    )  # fmt: skip


def write_image(path: Path, colour: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(int(each) for each in colour)).save(path)


def write_tree(folder: Path, classes: Sequence[int], n: int = 1, wrong: Sequence[int] = ()) -> None:
    """Write images of classes; those of the `wrong` ones have the colour of the next class."""
    for output in classes:
        for number in range(n):
            colour = CODES[(output + 1) % 1000 if output in wrong else output]
            write_image(folder / WNIDS[output] / f"{number}.png", colour, (12 + number, 10))


def imagenet_evaluation(root: Path, favour: float = 0.0, sharpness: float = 2.0) -> Evaluation:
    return Evaluation(
        classifier=colour_classifier(favour, sharpness), data=open_evaluation_data(root, METADATA)
    )


def write_imagenet_c(folder: Path, names: Sequence[str]) -> dict[str, list[float]]:
    """Write datasets of ten classes; later severities and names have more wrong images."""
    errors: dict[str, list[float]] = {}
    for place, name in enumerate(names):
        counts = [min(10, severity + place % 4) for severity in range(1, 6)]
        for severity, count in enumerate(counts, 1):
            classes = range(100, 110)
            write_tree(folder / name / str(severity), classes, wrong=list(classes)[:count])
        errors[name] = [count / 10 for count in counts]
    return errors


def write_video(path: Path, classes: Sequence[int], side: int = 32) -> None:
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = side
        stream.bit_rate = 4_000_000
        for output in classes:
            pixels = np.broadcast_to(CODES[output].astype(np.uint8), (side, side, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


EVERY_FIFTH = range(3, 1000, 5)


def write_clean(root: Path) -> None:
    write_tree(root / "val", [7, 402], n=2)


def write_severities(folder: Path, names: Sequence[str], severities: Sequence[str]) -> None:
    for name in names:
        for place, severity in enumerate(severities):
            wrong = [100, 101, 102, 103, 104][: place + 1]
            write_tree(folder / name / severity, range(100, 105), wrong=wrong)


def write_p(root: Path) -> None:
    for name in ALEXNET_FLIPS:
        write_video(root / "ImageNet-P" / name / WNIDS[3] / "a.mp4", [333, 777])


def write_outliers(root: Path) -> None:
    write_clean(root)
    for number in range(3):
        write_image(root / "outliers" / "dtd" / "banded" / f"{number}.png", CODES[number])


SEVERITIES = ("1", "2", "3", "4", "5")
