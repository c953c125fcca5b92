"""Recipes, losses and baseline augmentations."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipelines.training.augmentations import BaselineAugmentation, augmix, torch_seed
from pipelines.training.recipes import (
    named_recipe,
)
from pipelines.training.step import jensen_shannon, loss_of_views, update_average
from pixmix.settings import PixMixSettings

CIFAR = named_recipe("cifar")


IMAGENET = named_recipe("imagenet")


def test_the_default_recipes_equal_the_paper() -> None:
    assert (CIFAR.model, CIFAR.epochs, CIFAR.batch_size, CIFAR.dropout) == (
        "wrn_40_4",
        100,
        128,
        0.3,
    )
    assert (CIFAR.learning_rate, CIFAR.momentum, CIFAR.weight_decay) == (0.1, 0.9, 5e-4)
    assert CIFAR.pixmix == PixMixSettings(k=4, beta=3, severity=3)
    assert (IMAGENET.model, IMAGENET.epochs, IMAGENET.batch_size) == ("resnet50", 90, 256)
    assert IMAGENET.learning_rate == 0.01
    assert IMAGENET.pixmix == PixMixSettings(k=4, beta=4, severity=1)
    assert (CIFAR.final_learning_rate, IMAGENET.final_learning_rate) == (1e-6, 1e-6)


def test_the_learning_rate_follows_a_cosine() -> None:
    rates = [CIFAR.learning_rate_at(step, 390) for step in range(39_001)]
    assert rates[0] == 0.1
    assert rates[39_000] == pytest.approx(1e-6)
    assert rates[19_500] == pytest.approx((0.1 + 1e-6) / 2)
    assert all(later < earlier for earlier, later in pairwise(rates))
    expected = 1e-6 + (0.1 - 1e-6) * 0.5 * (1 + math.cos(math.pi * 1234 / 39_000))
    assert rates[1234] == pytest.approx(expected)


def test_the_learning_rate_rises_linearly_during_warmup() -> None:
    warm = replace(CIFAR, warmup_epochs=2.0)
    rates = [warm.learning_rate_at(step, 10) for step in range(25)]
    assert rates[:20] == pytest.approx([0.1 * (step + 1) / 21 for step in range(20)])
    assert rates[20] == 0.1
    assert rates[21] < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"learning_rate": 1e300}, "learning_rate is 1e.300"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"augment": "cutout"}, "augment is 'cutout'; must be one of none, pixmix"),
        ({"jsd": True, "augment": "none"}, "jsd needs augmented images"),
    ],
)
def test_a_recipe_rejects_invalid_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CIFAR, **changes)


def test_the_jensen_shannon_divergence_equals_numpy() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(-1).numpy()
    mixture = p.mean(0)
    expected = (p * np.log(p / mixture)).sum(-1).mean()
    assert float(jensen_shannon(logits)) == pytest.approx(expected, rel=1e-5)
    assert float(jensen_shannon(logits[:1].repeat(3, 1, 1))) == pytest.approx(0, abs=1e-6)


def test_the_loss_of_views_is_cross_entropy_plus_divergence() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4])
    loss = loss_of_views(logits, labels, jsd_weight=12, label_smoothing=0.1)
    first = functional.cross_entropy(logits[0], labels, label_smoothing=0.1)
    assert float(loss) == pytest.approx(float(first + 12 * jensen_shannon(logits)))


def test_the_moving_average_copies_integers() -> None:
    average = {"weight": torch.zeros(2), "n": torch.tensor(0)}
    update_average(average, {"weight": torch.ones(2), "n": torch.tensor(7)}, 0.9)
    torch.testing.assert_close(average["weight"], torch.full((2,), 0.1))
    assert int(average["n"]) == 7


def test_augmix_equals_the_authors_code() -> None:
    from PIL import Image

    from pixmix.operations import CODES

    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    counts = dict.fromkeys(CODES, 0)
    for severity, all_ops in ((3.0, False), (1.0, False), (3.0, True)):
        for key in range(40):
            mixed = augmix(image, np.random.default_rng(key), severity=severity, all_ops=all_ops)
            expected, drawn = augmix_of_pillow(
                Image.fromarray(image), np.random.default_rng(key), severity, all_ops=all_ops
            )
            np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-3)
            for name in drawn:
                counts[name] += 1
                assert all_ops or name not in ("color", "contrast", "brightness", "sharpness")
    assert min(counts.values()) >= 5


def augmix_of_pillow(
    image: Any,  # noqa: ANN401 - Pillow's
    rng: np.random.Generator,
    severity: float,
    *,
    all_ops: bool,
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """AugMix as its authors wrote it, and the operations that it drew."""
    from PIL import Image, ImageEnhance, ImageOps

    width, height = image.size

    def affine(*entries: float) -> Any:  # noqa: ANN401
        return lambda each: each.transform(
            each.size, Image.Transform.AFFINE, entries, Image.Resampling.BILINEAR
        )

    def signed(value: float) -> float:
        return -value if rng.uniform() > 0.5 else value

    def level() -> float:
        return float(rng.uniform(0.1, severity))

    def enhanced(kind: Any) -> Any:  # noqa: ANN401
        factor = level() * 1.8 / 10 + 0.1
        return lambda each: kind(each).enhance(factor)

    def posterized() -> Any:  # noqa: ANN401
        bits = 4 - int(level() * 4 / 10)
        return lambda each: ImageOps.posterize(each, bits)

    def rotated() -> Any:  # noqa: ANN401
        degrees = signed(int(level() * 30 / 10))
        return lambda each: each.rotate(degrees, resample=Image.Resampling.BILINEAR)

    def solarized() -> Any:  # noqa: ANN401
        threshold = 256 - int(level() * 256 / 10)
        return lambda each: ImageOps.solarize(each, threshold)

    operations = {
        "autocontrast": lambda: ImageOps.autocontrast,
        "equalize": lambda: ImageOps.equalize,
        "posterize": posterized,
        "rotate": rotated,
        "solarize": solarized,
        "shear_x": lambda: affine(1, signed(level() * 0.3 / 10), 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, signed(level() * 0.3 / 10), 1, 0),
        "translate_x": lambda: affine(1, 0, signed(int(level() * (width / 3) / 10)), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, signed(int(level() * (height / 3) / 10))),
        "color": lambda: enhanced(ImageEnhance.Color),
        "contrast": lambda: enhanced(ImageEnhance.Contrast),
        "brightness": lambda: enhanced(ImageEnhance.Brightness),
        "sharpness": lambda: enhanced(ImageEnhance.Sharpness),
    }
    names = list(operations)[: 13 if all_ops else 9]
    weights = np.float32(rng.dirichlet([1, 1, 1]))
    share = np.float32(rng.beta(1, 1))
    mixed = np.zeros((height, width, 3), np.float32)
    drawn = []
    for i in range(3):
        chained = image.copy()
        for _ in range(rng.integers(1, 4)):
            drawn.append(names[rng.integers(len(names))])
            chained = operations[drawn[-1]]()(chained)
        mixed += weights[i] * np.asarray(chained, np.float32)
    return (1 - share) * np.asarray(image, np.float32) + share * mixed, drawn


@pytest.mark.parametrize("kind", ["augmix", "trivialaugment"])
def test_baseline_augmentations_depend_only_on_seed_step_and_position(kind: Any) -> None:  # noqa: ANN401
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    augment = BaselineAugmentation(kind, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    state = torch.get_rng_state()
    together = augment(images, seed=1, step=2, first=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augment(images[2:], seed=1, step=2, first=2), together[2:])
    mean, std = torch.tensor((0.5, 0.4, 0.3)), torch.tensor((0.2, 0.3, 0.4))
    views = augment(images, seed=1, step=2, first=0, views=3)
    plain = ((images * 255).round() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(views[:, 0], plain)
    assert len({tuple(view.flatten().tolist()) for view in views.flatten(0, 1)}) >= 8
    assert torch.equal(augment(images[2:], seed=1, step=2, first=2, views=3), views[2:])
    assert not torch.equal(augment(images, seed=1, step=3, first=0), together)
    assert len({torch_seed(a, b) for a in range(30) for b in range(30)}) == 900
