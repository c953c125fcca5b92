"""Initial weights of networks, and the metadata of checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch

import networks
from pipelines.errors import PipelineError
from pipelines.models.checkpoints import open_checkpoint
from pipelines.models.registry import initialize_from, open_model
from pipelines.training.loop import train
from training_sets import ALONE, assert_same, training

pytestmark = pytest.mark.usefixtures("one_thread")


def test_initial_weights_may_have_another_last_layer() -> None:
    module = open_model("wrn_10_2", 10, seed=1)
    other = open_model("wrn_10_2", 7, seed=2)
    left = initialize_from(module, other.state_dict())
    assert left == ["fc.weight", "fc.bias"]
    assert torch.equal(module.conv1.weight, other.conv1.weight)
    with pytest.raises(ValueError, match="tensors do not fit, such as"):
        initialize_from(module, open_model("wrn_10_3", 10).state_dict())
    with pytest.raises(ValueError, match=r"not in this network, such as block1\.layer\.1"):
        initialize_from(module, open_model("wrn_16_2", 10).state_dict())


def test_initial_weights_depend_only_on_the_seed() -> None:
    state = torch.get_rng_state()
    first, second = open_model("resnet18", 5, seed=3), open_model("resnet18", 5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(first.state_dict(), second.state_dict())
    other = open_model("resnet18", 5, seed=4)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("wrn_41_4", {}, r"depth is 41; use 6 n \+ 4"),
        ("resnet999", {}, "network 'resnet999' not found"),
        ("wrn_10_1", {"pretrained": "IMAGENET1K_V1"}, "has no pretrained weights"),
        ("networks:nothing", {}, "networks:nothing failed"),
        ("networks:tiny", {}, "networks:tiny failed"),
    ],
)
def test_unknown_networks_are_rejected(name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        open_model(name, 10, **more)


def test_a_custom_network_is_trained_and_reopened(digits: Path, tmp_path: Path) -> None:
    trained = train(
        training(digits, tmp_path / "run", model="networks:classifier", epochs=1), ALONE
    )
    module, metadata = open_checkpoint(trained.checkpoint, "networks:classifier")
    assert isinstance(module, networks.Tiny)
    assert metadata["model"] == "networks:classifier"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"model": "os:system", "classes": 10}, "pass --model os:system"),
        ({"model": "os:system", "classes": "touch was-run"}, "classes is 'touch was-run'"),
        ({"model": 7, "classes": 10}, "model is 7"),
        ({"model": "wrn_10_1", "classes": 0}, "classes is 0"),
        ({"model": "wrn_10_1", "classes": True}, "classes is True"),
        ({"model": "wrn_10_1", "mean": [0.5]}, "mean is [0.5]"),
        ({"model": "wrn_10_1", "std": [0.5, 0, 0.5]}, "std is [0.5, 0, 0.5]"),
        ({"model": "wrn_10_1", "class_names": "abc"}, "class_names is 'abc'"),
        ({"model": "wrn_10_1", "image_size": -5}, "image_size is -5"),
        (5, "network is 5"),
    ],
)
def test_network_metadata_are_validated_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "from-elsewhere.pt"
    torch.save({"version": 2, "state_dict": {"fc.weight": torch.zeros(10, 3)}, "network": network},
               path)  # fmt: skip
    with pytest.raises(PipelineError) as caught:
        open_checkpoint(path, None)
    assert message in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path]
