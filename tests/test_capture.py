"""Layer inventories, captured activations, redirected ReLUs, and folded batch norms."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from featviz import folding
from featviz.capture import RedirectedRelus, capture_activations, find_layers, list_layers
from featviz.folding import fold_batch_norms, has_grouped_convolutions
from networks import ChannelsLast, Tiny, Tokens, seeded

EXAMPLE = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
IMAGES = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def captured(module: nn.Module, names: list[str], images: Tensor = IMAGES) -> dict[str, Tensor]:
    known = list_layers(module)
    with capture_activations(module, find_layers(known.layers, names)) as activations_of:
        return {name: each.detach().clone() for name, each in activations_of(images).items()}


def output_by_hook(module: nn.Module, name: str, images: Tensor = IMAGES) -> Tensor:
    """Return a layer's output at its last call by a plain hook, in evaluation mode."""
    copied = copy.deepcopy(module).eval()
    outputs: list[Tensor] = []
    copied.get_submodule(name).register_forward_hook(lambda *a: outputs.append(a[2].clone()))
    with torch.no_grad():
        copied(images)
    return outputs[-1]


# --- Layer inventories ---------------------------------------------------------------------------


def test_layers_are_listed_in_the_order_of_their_calls() -> None:
    layers = list_layers(seeded(Tiny)).layers
    assert list(layers) == ["conv1", "bn1", "pool", "conv2", "bn2", "relu", "conv3", "head"]
    assert [each.channels for each in layers.values()] == [12, 12, 12, 12, 12, 12, 20, 4]
    assert {name: each.calls for name, each in layers.items() if each.calls > 1} == {"relu": 2}
    assert layers["conv1"].positions == 128 * 192
    assert layers["head"].positions == 1
    assert all(each.layout == "channels first" for each in layers.values())


def test_a_fixed_input_size_is_found() -> None:
    assert list_layers(seeded(Tiny)).size is None
    assert list_layers(seeded(Tiny)).smallest == 32
    known = list_layers(seeded(Tokens))
    assert known.size == (32, 32)
    assert known.layers["norm"].layout == "channels last"
    assert (known.layers["norm"].channels, known.layers["norm"].positions) == (10, 16)


def test_a_network_that_does_not_accept_images_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"Linear does not accept float images .* use a network"):
        list_layers(nn.Linear(5, 5))


def test_an_unknown_layer_is_rejected_with_similar_names() -> None:
    with pytest.raises(ValueError, match=r"layer 'bn3' not found; use a name such as .*bn2"):
        find_layers(list_layers(seeded(Tiny)).layers, ["bn3"])


LAYERS = {
    # Network: layer, channels, dimension of the channels in the layer's own output.
    "resnet18": [("layer1.0.conv1", 64, 1), ("layer2", 128, 1)],
    "vgg11": [("features.3", 128, 1), ("classifier.0", 4096, 1)],
    "swin_t": [("features.1.0", 96, 3), ("features.3", 192, 3)],
    "convnext_tiny": [("features.1", 96, 1), ("features.1.0.block.3", 384, 3)],
    "vit_b_16": [("encoder.layers.encoder_layer_0", 768, 2), ("conv_proj", 768, 1)],
    "maxvit_t": [("blocks.0.layers.0", 64, 1)],
}


@pytest.mark.parametrize("name", LAYERS)
def test_activations_of_torchvision_networks_have_channels_first(name: str) -> None:
    module = torchvision.models.get_model(name, weights=None).eval()
    known = list_layers(module)
    assert (known.size is not None) == (name in {"vit_b_16", "maxvit_t"})
    images = torch.rand(2, 3, *(known.size or (64, 96)))
    for layer, channels, dimension in LAYERS[name]:
        assert known.layers[layer].channels == channels
        own = output_by_hook(module, layer, images)
        with torch.no_grad(), capture_activations(module, [known.layers[layer]]) as activations_of:
            seen = activations_of(images)[layer]
        expected = own.movedim(dimension, 1)
        torch.testing.assert_close(seen, expected if own.ndim > 2 else expected[..., None])


class Ambiguous(nn.Module):
    """A network whose layers output windows, a sequence of samples, and an ambiguous shape."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = nn.Unflatten(0, (1, 1))
        self.flat = nn.Flatten(0, 1)
        self.row = nn.Conv1d(3, 12, 1)
        self.square = nn.AdaptiveAvgPool2d(9)

    def forward(self, x: Tensor) -> Tensor:
        self.flat(x)
        self.square(x)
        return self.row(x.flatten(2))


def test_outputs_without_image_channels_are_not_listed() -> None:
    known = list_layers(Ambiguous())
    # (3, 128, 192) has a batch dimension of 3 instead of 1; 9x9 does not match 128x192.
    assert list(known.layers) == ["row"]
    assert (known.layers["row"].channels, known.layers["row"].layout) == (12, "channels first")
    attention = list_layers(torchvision.models.get_model("maxvit_t", weights=None).eval())
    windows = attention.layers["blocks.0.layers.0.layers.window_attention.attn_layer.0"]
    assert (windows.channels, windows.layout) == (64, "channels last")


# --- Captured activations ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv1", "bn1", "relu", "pool", "conv2", "bn2", "conv3"])
def test_later_in_place_operations_do_not_affect_captured_activations(name: str) -> None:
    module = seeded(Tiny)
    assert torch.equal(captured(module, [name])[name], output_by_hook(module, name))
    # And together with a later layer, so that the forward pass continues.
    together = captured(module, [name, "conv3"])
    assert torch.equal(together[name], output_by_hook(module, name))
    assert torch.equal(together["conv3"], output_by_hook(module, "conv3"))


def test_modules_after_the_last_layer_do_not_run() -> None:
    module = seeded(Tiny)
    ran: list[str] = []
    for name, each in module.named_modules():
        each.register_forward_hook(lambda *_, name=name: ran.append(name))
    known = list_layers(module)
    ran.clear()
    with capture_activations(module, find_layers(known.layers, ["bn2"])) as activations_of:
        activations_of(IMAGES)
    assert ran == ["conv1", "bn1", "relu", "pool", "conv2", "bn2"]


def test_the_state_of_a_network_is_restored() -> None:
    module = seeded(Tiny).train()
    module.bn2.eval()
    module.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())

    def flags() -> list[object]:
        return [
            *((each.training, len(each._forward_hooks)) for each in module.modules()),
            *(each.requires_grad for each in module.parameters()),
            *(each.inplace for each in module.modules() if isinstance(each, nn.ReLU)),
        ]

    before_flags = flags()
    known = list_layers(module)
    assert flags() == before_flags
    with capture_activations(module, [known.layers["conv3"]]) as activations_of:
        activations_of(IMAGES)
        assert not module.training
        assert not any(each.requires_grad for each in module.parameters())
    assert flags() == before_flags
    # Also if the context exits by an error, in the network or in the caller.
    for invalid in (IMAGES[:, :2], IMAGES):
        with (
            pytest.raises((RuntimeError, KeyError)),
            capture_activations(module, [known.layers["conv3"]]) as activations_of,
        ):
            activations_of(invalid)["head"]
    assert flags() == before_flags
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_activations_of_tokens_have_channels_first() -> None:
    module = seeded(Tokens)
    images = IMAGES[..., :32]
    seen = captured(module, ["mix"], images)["mix"]
    assert torch.equal(seen, output_by_hook(module, "mix", images).transpose(1, 2))
    last = seeded(ChannelsLast)
    seen = captured(last, ["mix"])["mix"]
    assert torch.equal(seen, output_by_hook(last, "mix").permute(0, 3, 1, 2))


def test_classes_are_channels_with_one_position() -> None:
    assert captured(seeded(Tiny), ["head"])["head"].shape == (3, 4, 1)


def test_gradients_reach_the_images_but_not_the_weights() -> None:
    module = seeded(Tiny)
    images = IMAGES.clone().requires_grad_()
    with capture_activations(module, [list_layers(module).layers["conv3"]]) as activations_of:
        activations_of(images)["conv3"].sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0
    assert all(each.grad is None for each in module.parameters())


# --- Redirected ReLUs ----------------------------------------------------------------------------

RELUS: list[tuple[Callable[[Tensor], Tensor], float]] = [
    (functional.relu, float("inf")),
    (torch.relu, float("inf")),
    (lambda x: x.relu(), float("inf")),
    (lambda x: functional.relu(x.clone(), inplace=True), float("inf")),
    (lambda x: x.clone().relu_(), float("inf")),
    (lambda x: torch.relu_(x.clone()), float("inf")),
    (functional.relu6, 6.0),
    (lambda x: functional.relu6(x.clone(), inplace=True), 6.0),
    (nn.ReLU(), float("inf")),
    (nn.ReLU6(), 6.0),
]


@pytest.mark.parametrize(("relu", "limit"), RELUS)
def test_a_dead_image_receives_the_redirected_gradient(
    relu: Callable[[Tensor], Tensor], limit: float
) -> None:
    alive = torch.tensor([[-1.0, 2.0, 7.0, -3.0]])
    dead = torch.tensor([[-1.0, -2.0, 8.0 if limit == 6 else -8.0, -3.0]])
    upstream = torch.tensor([[-1.0, 1.0, 1.0, -2.0]])
    for x, expected in (
        (alive, torch.tensor([[0.0, 1.0, 0.0 if limit == 6 else 1.0, 0.0]])),
        # Descent raises values with a negative gradient and lowers those with a positive one.
        (dead, torch.tensor([[-1.0, 0.0, 1.0 if limit == 6 else 0.0, -2.0]])),
    ):
        both = torch.cat([x, alive]).requires_grad_()
        with RedirectedRelus():
            result = relu(both)
        torch.testing.assert_close(result, both.detach().clamp(0, limit))
        result.backward(upstream.repeat(2, 1))
        assert both.grad is not None
        torch.testing.assert_close(both.grad[:1], expected)
        # The other image's gradient is the same in either case.
        torch.testing.assert_close(
            both.grad[1:], both.grad[1:] * 0 + plain_gradient(alive, limit, upstream)
        )


def plain_gradient(x: Tensor, limit: float, upstream: Tensor) -> Tensor:
    return upstream * ((x > 0) & (x < limit))


def test_relus_are_not_redirected_outside_the_context() -> None:
    x = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    with RedirectedRelus():
        pass
    functional.relu(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 2))  # type: ignore[arg-type]


# --- Folding -------------------------------------------------------------------------------------


def n_batch_norms(module: nn.Module) -> int:
    return sum(isinstance(each, nn.BatchNorm2d) for each in module.modules())


def test_folding_does_not_change_activations() -> None:
    module = seeded(Tiny).train()
    before = copy.deepcopy(module.state_dict())
    faster = fold_batch_norms(module, EXAMPLE)
    assert n_batch_norms(faster) == 0
    for name in ("bn1", "bn2", "conv3", "head"):
        torch.testing.assert_close(
            captured(faster, [name])[name].squeeze(-1),
            output_by_hook(module, name),
            atol=1e-5,
            rtol=1e-4,
        )
    assert module.training
    assert n_batch_norms(module) == 2
    assert all(torch.equal(module.state_dict()[name], each) for name, each in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet", "densenet121"])
def test_folded_torchvision_networks_have_the_same_outputs(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        more = {"init_weights": False} if name == "googlenet" else {}
        module = torchvision.models.get_model(name, weights=None, **more).eval()
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.uniform_(each.running_var, 0.5, 2)  # type: ignore[arg-type]
    faster = fold_batch_norms(module, EXAMPLE)
    # All but one of DenseNet's norms precede their convolutions.
    assert n_batch_norms(faster) < n_batch_norms(module) * (0.1 if name != "densenet121" else 1)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(faster(images), module(images), atol=1e-4, rtol=1e-3)


def test_kept_layers_are_not_folded() -> None:
    module = seeded(Tiny)
    faster = fold_batch_norms(module, EXAMPLE, keep=["conv2"])
    assert n_batch_norms(faster) == 1
    torch.testing.assert_close(
        captured(faster, ["conv2"])["conv2"], output_by_hook(module, "conv2"), atol=1e-5, rtol=1e-4
    )


class Shared(nn.Module):
    """A network with a convolution called twice and one read twice: neither can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.seen = nn.Conv2d(3, 3, 1)
        self.other = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.twice(self.twice(x)))
        y = self.seen(x)
        return y + self.other(y)


class Untraceable(nn.Module):
    """A network whose control flow depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.mean() > 0 else x


@pytest.mark.parametrize("network", [Shared, Untraceable])
def test_a_network_that_cannot_be_folded_stays_the_same(network: type[nn.Module]) -> None:
    module = seeded(network).eval()
    faster = fold_batch_norms(module, EXAMPLE)
    assert n_batch_norms(faster) == n_batch_norms(module)
    with torch.no_grad():
        torch.testing.assert_close(faster(IMAGES), module(IMAGES))


class Standardized(nn.Conv2d):
    """A convolution that is not linear in its weight, so no norm can be folded into it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, padding=1)


def convolution_and_norm(kind: str) -> nn.Module:
    pair = nn.Sequential()
    conv = Standardized(3, 8, 3) if kind == "subclass" else nn.Conv2d(3, 8, 3, padding=1)
    pair.add_module("conv", conv)
    pair.add_module("norm", nn.BatchNorm2d(8))
    nn.init.uniform_(pair.norm.running_var, 2, 3)
    if kind == "hook":
        conv.register_forward_hook(lambda *a: torch.relu(a[2]))
    if kind == "weight_norm":
        nn.utils.parametrizations.weight_norm(conv)
    return pair


@pytest.mark.parametrize("kind", ["subclass", "hook", "weight_norm"])
def test_modified_convolutions_are_not_folded(kind: str) -> None:
    module = convolution_and_norm(kind).eval()
    faster = fold_batch_norms(module, EXAMPLE)
    assert n_batch_norms(faster) == 1
    with torch.no_grad():
        torch.testing.assert_close(faster(EXAMPLE), module(EXAMPLE))


def test_a_network_that_cannot_be_copied_is_rejected() -> None:
    module = convolution_and_norm("none")
    # The state that the old weight_norm leaves.
    module.conv.weight = nn.Parameter(module.conv.weight)
    module.kept = module.conv.weight * 2  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the network cannot be copied"):
        fold_batch_norms(module, EXAMPLE)


def test_a_folded_network_with_other_outputs_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = seeded(Tiny)
    real = folding.fuse_conv_bn_eval

    def wrong(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
        fused = real(conv, norm)
        fused.weight.data *= 1.1
        return fused

    monkeypatch.setattr(folding, "fuse_conv_bn_eval", wrong)
    assert n_batch_norms(fold_batch_norms(module, EXAMPLE)) == 2


def test_grouped_convolutions_are_detected() -> None:
    assert not has_grouped_convolutions(seeded(Tiny))
    assert has_grouped_convolutions(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)))


def test_a_layer_that_is_not_called_is_named() -> None:
    known = list_layers(seeded(Tiny)).layers["conv1"]
    with (
        capture_activations(Unused(), [known]) as activations_of,
        pytest.raises(RuntimeError, match="conv1 was not called"),
    ):
        activations_of(IMAGES)


class Unused(nn.Module):
    """A network with a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x
