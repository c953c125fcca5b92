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
def test_a_released_checkpoint_classifies_as_the_network_that_was_saved(
    tmp_path: Path, model: str, classes: int
) -> None:
    module = open_model(model, classes)
    torch.save(reference_checkpoint(module, steps=1), tmp_path / "checkpoint.pth.tar")
    opened, said = open_checkpoint(tmp_path / "checkpoint.pth.tar", model)
    assert said["classes"] == classes
    with torch.no_grad():
        difference = (module.eval()(IMAGES) - opened(IMAGES)).abs().max()
    assert float(difference) <= 1e-5


def references_names(n: int) -> dict[str, str]:
    """Return the names of the released ResNeXt's tensors by ours, in the order of both."""
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
def test_the_references_resnext_is_read_under_its_own_names(n: int, prefix: str) -> None:
    saved = build_network(f"resnext{9 * n + 2}_4x2", 10)
    names = {own: prefix + old for own, old in references_names(n).items()}
    state = {names[own]: value for own, value in saved.state_dict().items()}
    module = build_network(f"resnext{9 * n + 2}_4x2", 10)
    assert load_weights(module, state, PATH) == []
    assert_loaded(module, state, names)


@pytest.mark.parametrize("name", ["wrn_16_2", "resnext29_4x32", "densenet_bc_40_12",
                                  "densenet_40_12"])  # fmt: skip
def test_first_weights_are_as_wide_as_the_references(name: str) -> None:
    module = open_model(name, 100)
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            fan_out = each.kernel_size[0] * each.kernel_size[1] * each.out_channels
            expected = (2 / fan_out) ** 0.5
        elif isinstance(each, nn.Linear):
            assert not bool(each.bias.any())
            # Only the ResNeXt's classifier is drawn anew there; torch's own is uniform.
            variance = 2 if name.startswith("resnext") else 1 / 3
            expected = (variance / each.in_features) ** 0.5
        else:
            continue
        if each.weight.numel() > 2000:
            assert float(each.weight.detach().std()) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(
    "wrap",
    ["{}", "module.{}", "_orig_mod.{}", "module._orig_mod.{}", "model.{}", "net.{}",
     "model.module.{}", "module.model.backbone.{}", "student.encoder.{}"],
)  # fmt: skip
def test_prefixes_that_all_tensors_share_are_removed_and_told(wrap: str) -> None:
    saved = small(1)
    state = {wrap.format(name): value for name, value in saved.state_dict().items()}
    module = small(2)
    notes = load_weights(module, state, PATH)
    assert_loaded(module, state, {name: wrap.format(name) for name in module.state_dict()})
    known = set(wrap.removesuffix("{}").strip(".").split(".")) <= {"", "module", "_orig_mod"}
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


def test_a_network_whose_own_names_hold_module_keeps_them() -> None:
    def network() -> nn.Module:
        return nn.ModuleDict({"module": nn.Linear(2, 2), "model": nn.Linear(2, 2)})

    saved, module = network(), network()
    assert load_weights(module, saved.state_dict(), PATH) == []
    wrapped = {f"module.{name}": value for name, value in saved.state_dict().items()}
    load_weights(module, wrapped, PATH)
    for name, value in saved.state_dict().items():
        assert torch.equal(module.state_dict()[name], value)


def test_what_lies_outside_the_prefix_is_left_out_and_named() -> None:
    state = {f"model.{name}": value for name, value in small(1).state_dict().items()}
    state["criterion.weight"] = torch.ones(7)
    module = small(2)
    notes = load_weights(module, state, PATH)
    assert any("criterion.weight" in note for note in notes)
    assert any("'model.'" in note for note in notes)
    assert torch.equal(module.state_dict()["conv1.weight"], state["model.conv1.weight"])


def test_a_prefix_that_only_half_of_the_tensors_have_is_not_guessed() -> None:
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


def test_tensors_that_are_not_of_the_network_are_refused_even_under_a_prefix() -> None:
    state = {f"model.{name}": value for name, value in small(1).state_dict().items()}
    state["model.attention.weight"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"not its own, such as attention\.weight"):
        load_weights(small(), state, PATH)
    with pytest.raises(ValueError, match=r"fc\.weight: \(7, 64\) instead of \(10, 64\)"):
        load_weights(small(classes=10), small(1).state_dict(), PATH)


def test_weights_to_begin_with_are_fitted_as_those_to_evaluate() -> None:
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
def test_auxiliary_heads_of_torchvision_are_left_out(
    tmp_path: Path, name: str, prefix: str
) -> None:
    saved = torchvision.models.get_model(
        name, weights=None, num_classes=5, aux_logits=True, init_weights=False
    )
    state = {prefix + key: value for key, value in saved.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    opened, said = open_checkpoint(tmp_path / "w.pt", name)
    assert said["classes"] == 5
    own = opened.state_dict()
    assert torch.equal(own["fc.weight"], saved.state_dict()["fc.weight"])
    assert not any(key.startswith(("aux", "Aux")) for key in own)
    assert initialize_from(open_model(name, 5), state) == []
    with pytest.raises(ValueError, match="not its own"):
        load_weights(small(), {"aux1.w": torch.ones(1), **small().state_dict()}, PATH)


@pytest.mark.parametrize("name", ["resnet18", "wrn_10_1", "densenet121", "squeezenet1_1",
                                  "vit_b_16", "mobilenet_v3_small", "convnext_tiny"])  # fmt: skip
def test_the_number_of_classes_does_not_depend_on_the_order_of_tensors(name: str) -> None:
    with torch.device("meta"):
        state = open_model(name, 13).state_dict()
        for order in (list(state), sorted(state), sorted(state, reverse=True)):
            given = {f"module.{key}": state[key] for key in order}
            assert n_classes(given, lambda n: open_model(name, n)) == 13


def test_a_function_that_takes_one_number_of_classes_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_five.py").write_text(
        "from torch import nn\n\ndef strict(n):\n    assert n == 5\n    return nn.Linear(2, 5)\n"
        "\ndef fixed(n):\n    return nn.Linear(2, 5)\n\ndef any(n):\n    return nn.Linear(2, n)\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 5).state_dict(), "w.pt")
    for function in ("strict", "fixed", "any"):
        _, said = open_checkpoint(Path("w.pt"), f"of_five:{function}")
        assert said["classes"] == 5


def test_a_safetensors_file_is_opened_like_a_state_dict(tmp_path: Path) -> None:
    saved = small(1, classes=13)
    safetensors.torch.save_file(saved.state_dict(), tmp_path / "w.safetensors")
    assert list(read_weights(tmp_path / "w.safetensors"))[-1] != "fc.bias"
    opened, said = open_checkpoint(tmp_path / "w.safetensors", "wrn_10_1")
    assert said["classes"] == 13
    with torch.no_grad():
        assert torch.equal(opened(IMAGES), saved.eval()(IMAGES))


def test_a_file_cannot_ask_for_a_network_of_much_memory(tmp_path: Path) -> None:
    content = {"state_dict": small().state_dict(), "network": {"model": "wrn_16_9999"}}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(PipelineError, match="does not fit WideResNet"):
        open_checkpoint(tmp_path / "w.pt", None)
    content["network"] = {"model": "wrn_10_1", "classes": 1_000_000}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(PipelineError, match=r"\(7, 64\) instead of \(1000000, 64\)"):
        open_checkpoint(tmp_path / "w.pt", None)


def test_versions_of_modules_stay_beside_their_tensors() -> None:
    module = small()
    state = OrderedDict((f"module.{key}", value) for key, value in module.state_dict().items())
    state._metadata = OrderedDict({"module.bn1": {"version": 2}, "": {"version": 1}})  # type: ignore[attr-defined]
    assert match_names(state, module).state._metadata["bn1"] == {"version": 2}  # type: ignore[attr-defined]
