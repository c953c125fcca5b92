"""Networks by name: their sizes, initial weights and checkpoints of the reference."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.errors import PipelineError
from pipelines.generate.featviz import open_trained
from pipelines.models.cifar import WideResNet
from pipelines.models.registry import (
    EXAMPLES,
    FAMILIES,
    build_network,
    default_input,
    family_of,
    is_cifar_network,
    open_model,
)


def parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        # The numbers of the PixMix reference.
        ("wrn_40_4", 10, 8_949_210),
        ("wrn_40_4", 100, 8_972_340),
        # The papers round these to 36.5 M, 0.7 M and 0.8 M.
        ("wrn_28_10", 10, 36_479_194),
        ("wrn_16_2", 10, 691_674),
        ("densenet_bc_100_12", 10, 769_162),
        # The numbers of the PixMix reference, whose DenseNet has no bottlenecks.
        ("densenet_40_12", 10, 1_059_298),
        ("resnext29_32x4", 10, 6_807_882),
    ],
)
def test_networks_have_the_number_of_parameters_in_their_papers(
    name: str, classes: int, expected: int
) -> None:
    module = build_network(name, classes)
    assert parameters(module) == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_networks_classify_images_of_several_sizes(name: str) -> None:
    module = build_network(name, 7)
    module.eval()
    with torch.no_grad():
        for side in (32, 64):
            assert module(torch.randn(2, 3, side, side)).shape == (2, 7)


def test_wide_networks_have_the_tensor_names_of_the_reference() -> None:
    names = list(WideResNet().state_dict())
    assert len(names) == 227
    assert names[0] == "conv1.weight"
    assert "block1.layer.0.bn1.running_var" in names
    shortcuts = [name for name in names if "conv_shortcut" in name]
    assert shortcuts == [f"block{i}.layer.0.conv_shortcut.weight" for i in (1, 2, 3)]
    assert names[-2:] == ["fc.weight", "fc.bias"]


def test_a_wide_block_with_new_channels_feeds_its_shortcut_with_the_activated_input() -> None:
    module = WideResNet(10, 1, classes=3).eval()
    # 16 channels stay 16: plain input. 16 to 32: activated.
    assert module.block1.layer[0].conv_shortcut is None
    block = module.block2.layer[0]
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        y = block(x)
        block.conv2.weight.zero_()
        shortcut = block(x)
        torch.testing.assert_close(
            shortcut, block.conv_shortcut(torch.relu(block.bn1(x))), atol=1e-6, rtol=1e-5
        )
    assert y.shape == (2, 32, 4, 4)


def test_dropout_only_acts_in_training() -> None:
    module = WideResNet(10, 1, classes=3, dropout=0.5)
    x = torch.randn(4, 3, 32, 32)
    module.eval()
    with torch.no_grad():
        assert torch.equal(module(x), module(x))
        block = module.block1.layer[0].train()
        assert not torch.equal(block(module.conv1(x)), block(module.conv1(x)))


def test_initial_weights_follow_he_et_al() -> None:
    module = build_network("wrn_16_4", 10)
    assert isinstance(module, WideResNet)
    for each in module.modules():
        if isinstance(each, nn.Conv2d) and each.weight.numel() > 5000:
            fan_out = each.kernel_size[0] * each.kernel_size[1] * each.out_channels
            expected = (2 / fan_out) ** 0.5
            assert float(each.weight.detach().std()) == pytest.approx(expected, rel=0.05)
    assert not bool(module.fc.bias.any())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrn_41_4", r"depth is 41; use 6 n \+ 4"),
        ("resnext28_32x4", r"depth is 28; use 9 n \+ 2"),
        ("densenet_bc_101_12", r"depth is 101; use 6 n \+ 4"),
        ("densenet_41_12", r"depth is 41; use 3 n \+ 4"),
    ],
)
def test_invalid_depths_are_rejected(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(name, 10)


def test_a_name_belongs_to_one_family_or_is_rejected() -> None:
    names = [*EXAMPLES, "resnet50", "networks:classifier", "timm/resnet18"]
    for name in names:
        assert len([each for each in FAMILIES if re.fullmatch(each.pattern, name)]) == 1, name
    assert len({family_of(name).pattern for name in names}) == len(FAMILIES)
    assert not is_cifar_network("resnet50")
    for name in ("wrn_40", "wrn_0_4", "xwrn_40_4", "resnet999", "timm"):
        assert not is_cifar_network(name)
        with pytest.raises(ValueError, match=name):
            build_network(name, 10)


def test_timm_networks_are_built_by_name() -> None:
    pytest.importorskip("timm")
    module = open_model("timm/resnet18", 7, seed=3)
    assert module.fc.weight.shape == (7, 512)
    assert torch.equal(open_model("timm/resnet18", 7, seed=3).fc.weight, module.fc.weight)
    spec = default_input("timm/resnet18")
    assert spec is not None
    assert (spec.image_size, spec.resize, spec.mean) == (224, 236, (0.485, 0.456, 0.406))
    for more in ({"name": "timm/nothing"}, {"name": "timm/resnet18", "pretrained": "a1_in1k"}):
        with pytest.raises(PipelineError, match=more["name"].removeprefix("timm/")):
            open_model(more.pop("name"), 7, **more)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_checkpoints_of_the_reference_are_read(
    tmp_path: Path, prefix: str, wrapper: str | None
) -> None:
    module = WideResNet(16, 1, classes=100)
    state = {
        prefix + name.replace("conv_shortcut", "convShortcut"): each
        for name, each in module.state_dict().items()
    }
    path = tmp_path / "checkpoint.pt"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 99, "best_acc": 0.9}, path)
    network = open_trained("wrn_16_1", path, random_weights=False)
    assert torch.equal(network.module.fc.weight, module.fc.weight)
    assert (network.mean, network.std) == ((0.5,) * 3, (0.5,) * 3)
    assert network.default_layers()[0].name == "block1.layer.0"


def test_cifar_networks_need_a_weights_file() -> None:
    with pytest.raises(PipelineError, match="wrn_10_2 comes without trained weights"):
        open_trained("wrn_10_2", None, random_weights=False)
    first = open_trained("wrn_10_2", None, random_weights=True)
    open_trained.cache_clear()
    again = open_trained("wrn_10_2", None, random_weights=True)
    assert first.weights_sha256 == "random"
    assert torch.equal(first.module.fc.weight, again.module.fc.weight)
