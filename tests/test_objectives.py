"""Objectives against plain numpy."""

import numpy as np
import pytest
import torch

from featviz import channel, deepdream, direction, diversity, draw_direction, neuron
from featviz.canvas import random_generator

ACTIVATIONS = {
    "a": torch.randn(3, 5, 4, 7, generator=torch.Generator().manual_seed(0)),
    "b": torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(1)),
}
A, B = ACTIVATIONS["a"].double().numpy(), ACTIVATIONS["b"].double().numpy()


def close(values: torch.Tensor, expected: object) -> None:
    assert values.shape == (3,)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_channel_is_the_mean_over_all_positions() -> None:
    close(channel("a", 2)(ACTIVATIONS), A[:, 2].mean((1, 2)))
    close(channel("a", [4, 0, 1])(ACTIVATIONS), [A[0, 4].mean(), A[1, 0].mean(), A[2, 1].mean()])
    close(channel("b", 5)(ACTIVATIONS), B[:, 5].mean(1))


def test_a_neuron_is_the_middle_position() -> None:
    close(neuron("a", 3)(ACTIVATIONS), A[:, 3, 2, 3])
    close(neuron("b", [0, 1, 2])(ACTIVATIONS), [B[0, 0, 4], B[1, 1, 4], B[2, 2, 4]])


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_a_direction_favours_activations_along_it(power: float) -> None:
    targets = random_generator(0).standard_normal((3, 5)).astype(np.float32)
    expected = []
    for activations, way in zip(A, targets.astype(float), strict=True):
        values = []
        for position in activations.reshape(5, -1).T:
            dot = position @ way
            cosine = dot / (np.linalg.norm(position) * np.linalg.norm(way) + 1e-4)
            values.append(dot * max(cosine, 0.1) ** power)
        expected.append(np.mean(values))
    close(direction("a", torch.from_numpy(targets), cosine_power=power)(ACTIVATIONS), expected)
    alone = direction("a", torch.from_numpy(targets[1]), cosine_power=power)(ACTIVATIONS)
    assert float(alone[1]) == pytest.approx(expected[1], rel=1e-5)


def test_deepdream_is_the_mean_square() -> None:
    close(deepdream("b")(ACTIVATIONS), (B**2).mean((1, 2)))


def test_diversity_is_minus_the_mean_cosine_with_the_others() -> None:
    grams = [each.reshape(5, -1) @ each.reshape(5, -1).T for each in A]
    grams = [each / np.linalg.norm(each) for each in grams]
    expected = [
        -np.mean([(grams[i] * grams[j]).sum() for j in range(3) if j != i]) for i in range(3)
    ]
    close(diversity("a")(ACTIVATIONS), expected)
    alike = {"a": ACTIVATIONS["a"][:1].repeat(3, 1, 1, 1)}
    close(diversity("a")(alike), [-1, -1, -1])
    assert diversity("a")({"a": ACTIVATIONS["a"][:1]}).tolist() == [0.0]


def test_objectives_can_be_added_scaled_and_negated() -> None:
    first, second = channel("a", 1), channel("b", 2)
    x, y = first(ACTIVATIONS).numpy(), second(ACTIVATIONS).numpy()
    close((first + second)(ACTIVATIONS), x + y)
    close((first - 0.5 * second)(ACTIVATIONS), x - 0.5 * y)
    close((-first)(ACTIVATIONS), -x)
    parts = torch.tensor([0.0, 1.0, 2.0])
    close((first * parts + second)(ACTIVATIONS), x * parts.numpy() + y)
    close((np.array([0.0, 1.0, 2.0]) * first)(ACTIVATIONS), x * parts.numpy())
    close(channel("a", np.int64(1))(ACTIVATIONS), x)  # type: ignore[arg-type]
    assert (first + second).layers == {"a", "b"}
    assert (3 * -first).layers == {"a"}


def test_random_directions_have_length_one_and_differ() -> None:
    drawn = torch.stack([draw_direction(random_generator(i), 64) for i in range(50)])
    np.testing.assert_allclose(drawn.norm(dim=1), 1, rtol=1e-5)
    cosines = drawn @ drawn.T - torch.eye(50)
    assert float(cosines.abs().max()) < 0.6
    assert torch.equal(draw_direction(random_generator(7), 64), drawn[7])


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (channel("a", 5), "channel 5 of a does not exist; use 0 to 4"),
        (channel("a", -1), "channel -1 of a"),
        (neuron("a", [0, 1]), "2 channels for 3 images"),
        (direction("a", torch.zeros(4)), "a has 5 channels, and there are 3 images"),
        (direction("a", torch.zeros(2, 5)), r"directions have shape \(2, 5\)"),
    ],
)
def test_objectives_reject_channels_and_shapes_that_do_not_match(
    objective: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        objective(ACTIVATIONS)  # type: ignore[operator]
