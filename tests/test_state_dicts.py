"""Tensor names of checkpoints from elsewhere, matched to those of a network."""

from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from featviz.state_dicts import load_weights, match_names, n_classes, read_weights
from pipelines.errors import PipelineError
from pipelines.models.checkpoints import open_checkpoint
from pipelines.models.cifar import ResNeXt
from pipelines.models.registry import build_network, initialize_from, open_model
from test_weights import reference_checkpoint

PATH = Path("file.pt")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def small(seed: int = 0, classes: int = 7) -> nn.Module:
    return open_model("wrn_10_1", classes, seed=seed)


def assert_loaded(module: nn.Module, state: dict[str, Tensor], names: dict[str, str]) -> None:
    own = module.state_dict()
    assert own.keys() == names.keys()
    assert all(torch.equal(own[name], state[old]) for name, old in names.items())


@pytest.mark.parametrize(
    ("model", "classes"), [("wrn_40_4", 10), ("wrn_10_1", 100), ("densenet_13_4", 10)]
)
def test_a_released_checkpoint_has_the_outputs_of_the_saved_network(
    tmp_path: Path, model: str, classes: int
) -> None:
    module = open_model(model, classes)
    torch.save(reference_checkpoint(module, steps=1), tmp_path / "checkpoint.pth.tar")
    opened, metadata = open_checkpoint(tmp_path / "checkpoint.pth.tar", model)
    assert metadata["classes"] == classes
    with torch.no_grad():
        difference = (module.eval()(IMAGES) - opened(IMAGES)).abs().max()
    assert float(difference) <= 1e-5


def reference_names(n: int) -> dict[str, str]:
    """Return the tensor names of the published ResNeXt, by ours, in the order of both."""
    parts = ("conv_reduce", "bn_reduce", "conv_conv", "bn", "conv_expand", "bn_expand")
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv_1_3x3.weight", *(f"bn_1.{each}" for each in norm)]
    for stage in (1, 2, 3):
        for block in range(n):
            for part in (*parts, *(("downsample.0", "downsample.1") if block == 0 else ())):
                is_norm = part.startswith("bn") or part.endswith(".1")
                names += [
                    f"stage_{stage}.{block}.{part}.{each}"
                    for each in (norm if is_norm else ("weight",))
                ]
    return dict(
        zip(ResNeXt(9 * n + 2, 2, 4).state_dict(), [*names, "classifier.weight",
            "classifier.bias"], strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_reference_resnext_is_loaded_under_its_own_names(n: int, prefix: str) -> None:
    saved = build_network(f"resnext{9 * n + 2}_4x2", 10)
    names = {own: prefix + old for own, old in reference_names(n).items()}
    state = {names[own]: value for own, value in saved.state_dict().items()}
    module = build_network(f"resnext{9 * n + 2}_4x2", 10)
    assert load_weights(module, state, PATH) == []
    assert_loaded(module, state, names)


@pytest.mark.parametrize("name", ["wrn_16_2", "resnext29_4x32", "densenet_bc_40_12",
                                  "densenet_40_12"])  # fmt: skip
def test_initial_weights_have_the_standard_deviation_of_the_reference(name: str) -> None:
    module = open_model(name, 100)
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            fan_out = each.kernel_size[0] * each.kernel_size[1] * each.out_channels
            expected = (2 / fan_out) ** 0.5
        elif isinstance(each, nn.Linear):
            assert not bool(each.bias.any())
            # Only the ResNeXt reference initializes the classifier; torch's default is uniform.
            variance = 2 if name.startswith("resnext") else 1 / 3
            expected = (variance / each.in_features) ** 0.5
        else:
            continue
        if each.weight.numel() > 2000:
            assert float(each.weight.detach().std()) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(
    "prefix_format",
    ["{}", "module.{}", "_orig_mod.{}", "module._orig_mod.{}", "model.{}", "net.{}",
     "model.module.{}", "module.model.backbone.{}", "student.encoder.{}"],
)  # fmt: skip
def test_shared_prefixes_are_removed_and_reported(prefix_format: str) -> None:
    saved = small(1)
    state = {prefix_format.format(name): value for name, value in saved.state_dict().items()}
    module = small(2)
    notes = load_weights(module, state, PATH)
    assert_loaded(module, state, {name: prefix_format.format(name) for name in module.state_dict()})
    known = set(prefix_format.removesuffix("{}").strip(".").split(".")) <= {
        "",
        "module",
        "_orig_mod",
    }
    assert bool(notes) != known


def test_a_wrapper_within_the_network_is_removed() -> None:
    saved = torchvision.models.alexnet(num_classes=3)
    state = {
        name.replace("features.", "features.module."): value
        for name, value in saved.state_dict().items()
    }
    module = torchvision.models.alexnet(num_classes=3)
    assert load_weights(module, state, PATH) == []
    assert torch.equal(module.features[0].weight, saved.features[0].weight)


def test_a_network_with_a_child_named_module_keeps_its_names() -> None:
    def network() -> nn.Module:
        return nn.ModuleDict({"module": nn.Linear(2, 2), "model": nn.Linear(2, 2)})

    saved, module = network(), network()
    assert load_weights(module, saved.state_dict(), PATH) == []
    wrapped = {f"module.{name}": value for name, value in saved.state_dict().items()}
    load_weights(module, wrapped, PATH)
    for name, value in saved.state_dict().items():
        assert torch.equal(module.state_dict()[name], value)


def test_tensors_outside_the_prefix_are_ignored_and_reported() -> None:
    state = {f"model.{name}": value for name, value in small(1).state_dict().items()}
    state["criterion.weight"] = torch.ones(7)
    module = small(2)
    notes = load_weights(module, state, PATH)
    assert any("criterion.weight" in note for note in notes)
    assert any("'model.'" in note for note in notes)
    assert torch.equal(module.state_dict()["conv1.weight"], state["model.conv1.weight"])


def test_a_prefix_of_half_of_the_tensors_is_not_removed() -> None:
    state = {
        f"{who}.{name}": value
        for who in ("student", "teacher")
        for name, value in small(1).state_dict().items()
    }
    module = small(2)
    before = module.conv1.weight.clone()
    with pytest.raises(ValueError, match=r"student\.conv1\.weight"):
        load_weights(module, state, PATH)
    assert torch.equal(module.conv1.weight, before)


def test_unexpected_tensors_are_rejected_even_under_a_prefix() -> None:
    state = {f"model.{name}": value for name, value in small(1).state_dict().items()}
    state["model.attention.weight"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"unexpected, such as attention\.weight"):
        load_weights(small(), state, PATH)
    with pytest.raises(ValueError, match=r"fc\.weight: \(7, 64\) instead of \(10, 64\)"):
        load_weights(small(classes=10), small(1).state_dict(), PATH)


def test_initial_weights_are_matched_like_those_of_evaluations() -> None:
    state = {f"model.{name}": value for name, value in small(1).state_dict().items()}
    module = small(2)
    assert initialize_from(module, state) == []
    assert torch.equal(module.conv1.weight, state["model.conv1.weight"])
    other = small(2, classes=4)
    assert initialize_from(other, state) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("googlenet", "module."),
        pytest.param("inception_v3", "", marks=pytest.mark.slow),
    ],
)
def test_auxiliary_heads_of_torchvision_are_ignored(tmp_path: Path, name: str, prefix: str) -> None:
    saved = torchvision.models.get_model(
        name, weights=None, num_classes=5, aux_logits=True, init_weights=False
    )
    state = {prefix + key: value for key, value in saved.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    opened, metadata = open_checkpoint(tmp_path / "w.pt", name)
    assert metadata["classes"] == 5
    own = opened.state_dict()
    assert torch.equal(own["fc.weight"], saved.state_dict()["fc.weight"])
    assert not any(key.startswith(("aux", "Aux")) for key in own)
    assert initialize_from(open_model(name, 5), state) == []
    with pytest.raises(ValueError, match="unexpected"):
        load_weights(small(), {"aux1.w": torch.ones(1), **small().state_dict()}, PATH)


@pytest.mark.parametrize("name", ["resnet18", "wrn_10_1", "densenet121", "squeezenet1_1",
                                  "vit_b_16", "mobilenet_v3_small", "convnext_tiny"])  # fmt: skip
def test_the_number_of_classes_does_not_depend_on_the_order_of_tensors(name: str) -> None:
    with torch.device("meta"):
        state = open_model(name, 13).state_dict()
        for order in (list(state), sorted(state), sorted(state, reverse=True)):
            renamed = {f"module.{key}": state[key] for key in order}
            assert n_classes(renamed, lambda n: open_model(name, n)) == 13


def test_a_function_for_one_number_of_classes_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_five.py").write_text(
        "from torch import nn\n\ndef strict(n):\n    assert n == 5\n    return nn.Linear(2, 5)\n"
        "\ndef fixed(n):\n    return nn.Linear(2, 5)\n\ndef any(n):\n    return nn.Linear(2, n)\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 5).state_dict(), "w.pt")
    for function in ("strict", "fixed", "any"):
        _, metadata = open_checkpoint(Path("w.pt"), f"of_five:{function}")
        assert metadata["classes"] == 5


def test_a_safetensors_file_is_opened_like_a_state_dict(tmp_path: Path) -> None:
    saved = small(1, classes=13)
    safetensors.torch.save_file(saved.state_dict(), tmp_path / "w.safetensors")
    assert list(read_weights(tmp_path / "w.safetensors"))[-1] != "fc.bias"
    opened, metadata = open_checkpoint(tmp_path / "w.safetensors", "wrn_10_1")
    assert metadata["classes"] == 13
    with torch.no_grad():
        assert torch.equal(opened(IMAGES), saved.eval()(IMAGES))


def test_a_file_cannot_request_a_huge_network(tmp_path: Path) -> None:
    content = {"state_dict": small().state_dict(), "network": {"model": "wrn_16_9999"}}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(PipelineError, match="does not match WideResNet"):
        open_checkpoint(tmp_path / "w.pt", None)
    content["network"] = {"model": "wrn_10_1", "classes": 1_000_000}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(PipelineError, match=r"\(7, 64\) instead of \(1000000, 64\)"):
        open_checkpoint(tmp_path / "w.pt", None)


def test_module_versions_are_renamed_with_their_tensors() -> None:
    module = small()
    state = OrderedDict((f"module.{key}", value) for key, value in module.state_dict().items())
    state._metadata = OrderedDict({"module.bn1": {"version": 2}, "": {"version": 1}})  # type: ignore[attr-defined]
    assert match_names(state, module).state._metadata["bn1"] == {"version": 2}  # type: ignore[attr-defined]
