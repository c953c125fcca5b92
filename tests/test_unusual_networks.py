"""Networks with NaN, with a fixed input size, and in the working folder."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from featviz import channel, visualize
from featviz.capture import find_nonfinite, list_layers
from featviz.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Network,
    call_model_function,
    network_from_module,
)
from pipelines.errors import PipelineError
from pipelines.generate.featviz import open_trained, plan_generator
from pipelines.models.registry import open_model


def opened(module: nn.Module) -> Network:
    return network_from_module(
        module, name="ours", mean=IMAGENET_MEAN, std=IMAGENET_STD, weights_sha256="random"
    )


# --- NaN and infinity ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", ["conv1.weight", "bn1.running_var", "fc.bias"])
def test_nan_and_infinite_weights_are_named(tmp_path: Path, value: float, tensor: str) -> None:
    state = open_model("wrn_10_1", 10).state_dict()
    state[tensor].view(-1)[3] = value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(PipelineError, match=tensor.replace(".", r"\.")) as caught:
        open_trained("wrn_10_1", tmp_path / "w.pt", random_weights=False)
    assert ("NaN" if math.isnan(value) else "infinite") in str(caught.value)


def test_a_mask_of_infinities_is_accepted() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("mask", torch.full((2, 2), -math.inf))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y

    assert "conv" in opened(Masked()).inventory.layers


class Overflowing(nn.Module):
    """A network whose second convolution overflows for every input except zero."""

    def __init__(self, scale: float = 3e38) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        # Random weights could cancel, and not overflow.
        nn.init.constant_(self.first.weight, 1.0)
        nn.init.constant_(self.second.weight, scale)
        nn.init.zeros_(self.second.bias)
        nn.init.zeros_(self.first.bias)
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.second(self.first(x)))
        return y


def test_the_layer_of_nonfinite_activations_is_named() -> None:
    network = opened(Overflowing())
    assert find_nonfinite(network.module, torch.zeros(1, 3, 16, 16)) is None
    assert find_nonfinite(network.module, torch.rand(1, 3, 16, 16)) == "second"
    for layer in ("second", "last"):
        with pytest.raises(ValueError, match="ours: the activations of layer second are NaN"):
            visualize(network, channel(layer, 0), n=2, size=16, steps=2)
    images = visualize(network, channel("first", 0), n=1, size=16, steps=2)
    assert images.std() > 0


def test_a_nan_gradient_is_reported_instead_of_a_black_image() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.act = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            # The gradient of a root at 0 is infinite, and 0 times that is NaN.
            y: Tensor = self.act((self.conv(x) * 0).sqrt())
            return y

    with pytest.raises(ValueError, match=r"the gradient .* is NaN"):
        visualize(opened(Root()), channel("act", 0), n=1, size=16, steps=2)


def test_the_generator_names_the_layer_of_nonfinite_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "overflows.py").write_text(
        "from test_unusual_networks import Overflowing\n\ndef make():\n    return Overflowing()\n"
    )
    monkeypatch.chdir(tmp_path)
    generator = plan_generator(
        model="overflows:make", weights=None, random_weights=True, layers=["last"], seed=0,
        size=(32, 32), steps=2, device="cpu", precision="float32", batch=2, jobs=1, earlier={},
    )  # fmt: skip
    with pytest.raises(PipelineError, match="layer second are NaN or infinite") as caught:
        list(generator.generate(range(2)))
    assert "steps" not in str(caught.value)


# --- Fixed input sizes ---------------------------------------------------------------------------


class Flat(nn.Module):
    """A network that accepts one input size, and has no attribute for it."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * height * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.conv(x).flatten(1))
        return y


@pytest.mark.parametrize("side", [28, 32, 64, 96, 224, 299, 384])
def test_a_fixed_input_size_is_found_by_trying(side: int) -> None:
    inventory = list_layers(Flat(side, side))
    assert inventory.size == (side, side)


@pytest.mark.parametrize("size", [40, (40, 40), [24, 72]])
def test_an_unusual_input_size_is_read_from_an_attribute(size: object) -> None:
    height, width = (size, size) if isinstance(size, int) else size  # type: ignore[misc]
    module = Flat(height, width)
    module.img_size = size  # type: ignore[assignment]
    assert list_layers(module).size == (height, width)


@pytest.mark.parametrize("side", [32, 48, 72])
def test_a_vision_transformer_of_any_size_is_visualized(side: int) -> None:
    torch.manual_seed(0)
    module = torchvision.models.VisionTransformer(
        image_size=side, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
        num_classes=10,
    )  # fmt: skip
    network = opened(module)
    assert network.inventory.size == (side, side)
    name = network.default_layers()[0].name
    images = visualize(network, channel(name, [3]), n=1, size=64, steps=8)
    assert images.shape == (1, 64, 64, 3)
    assert images.std() > 1


# --- The working folder --------------------------------------------------------------------------


def test_modules_in_the_working_folder_are_importable_also_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_this_folder.py").write_text(
        "from torch import nn\n\ndef make(n=3):\n    import beside_it\n"
        "    return nn.Linear(beside_it.WIDTH, n)\n"
    )
    (tmp_path / "beside_it.py").write_text("WIDTH = 5\n")
    path = [each for each in sys.path if each not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", path)
    monkeypatch.chdir(tmp_path)
    module = call_model_function("of_this_folder:make", 4)
    assert isinstance(module, nn.Linear)
    assert (module.in_features, module.out_features) == (5, 4)
    # At the end of the path, so that it hides no later import.
    assert sys.path[-1] == str(tmp_path)
    assert sys.path[0] != str(tmp_path)
    assert isinstance(open_model("of_this_folder:make", 2), nn.Linear)


def test_a_custom_module_that_hides_one_of_our_packages_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fractals").mkdir()
    (tmp_path / "fractals" / "__init__.py").write_text("")
    (tmp_path / "hiding_ours.py").write_text(
        "from torch import nn\nimport fractals\n\ndef make(n):\n    return nn.Linear(5, n)\n"
    )
    ours = [name for name in sys.modules if name.partition(".")[0] == "fractals"]
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    try:
        with pytest.raises(PipelineError, match=r"shadows the package 'fractals'"):
            open_model("hiding_ours:make", 2)
    finally:
        sys.modules.pop("fractals", None)


@pytest.mark.slow
def test_an_installed_command_finds_a_network_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "of_this_folder.py").write_text(
        "from torch import nn\n\ndef make(n=3):\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))\n"
    )
    script = Path(sys.executable).parent / "pixmix-gen"
    if not script.exists():
        pytest.skip("the commands are not installed")
    result = subprocess.run(
        [str(script), "featviz", "--model", "of_this_folder:make", "--random-weights", "--n", "1",
         "--size", "32", "--steps", "8", "--out", "set", "--jobs", "1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert np.sum([1 for _ in (tmp_path / "set").iterdir()]) > 0
