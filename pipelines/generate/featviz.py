"""The generator of feature visualizations."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import torch

from featviz import (
    FEATVIZ_VERSION,
    Network,
    OptimizedImages,
    Precision,
    PreparedNetwork,
    Recipe,
    best_precision,
    draw_recipe,
    find_layers,
    open_network,
    optimize_images,
    plan_stages,
    prepare_network,
)
from featviz.networks import DEFAULT, RANDOM, network_from_module
from featviz.sampling import GROUP, recipe_canvas, recipe_objective
from featviz.state_dicts import load_weights, n_classes, read_weights
from featviz.visualize import explain_nonfinite
from fractals import measure
from fractals.statistics import is_dead
from pipelines.errors import PipelineError
from pipelines.generate.generators import Generated, Pixels, pixel_sha256
from pipelines.models.registry import build_network, is_cifar_network
from pipelines.system.files import file_sha256
from pipelines.system.processes import available_memory
from pipelines.system.ranks import local_gpu
from pixmix.commands import check_packages

KIND = "feature visualizations"

_PLAIN_SETTINGS = (
    "seed", "model", "weights_sha256", "height", "width", "steps", "precision", "batch",
)  # fmt: skip

_OTHER_LICENCE = "as the licence of the network's weights allows"

_MAX_ATTEMPTS = 8
_HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of the inputs of CIFAR networks."""
_MAX_BATCH = {"cpu": GROUP, "mps": 32, "cuda": 128}
"""By device type. A CPU gains nothing from more than 8 images at once; a GPU must be filled."""
_MEMORY_SHARE = 0.5
"""The share of a machine's or a GPU's memory that batches may take."""


@dataclass(frozen=True, kw_only=True)
class FeatvizGenerator:
    """Generates the feature visualizations of a seed, a network and some of its layers.

    Attributes:
        model: name of the network.
        weights_sha256: hash of the network's weights; see `featviz.Network`.
        layers: names of layers, in order.
        seed: seed of all images.
        height, width: size in pixels.
        steps: optimization steps.
        precision: precision of the network.
        batch: images that are optimized together. A smaller batch is filled up with copies: some
            networks run other kernels, which round differently, at another batch size.
        weights: file of the user's weights; None for those that come with the network.
        random_weights: use the network with random weights.
        device: name of the torch device.
    """

    model: str
    weights_sha256: str
    layers: tuple[str, ...]
    seed: int = 0
    height: int = 256
    width: int = 256
    steps: int = 128
    precision: Precision = "float32"
    batch: int = GROUP
    weights: Path | None = None
    random_weights: bool = False
    device: str = "cpu"

    def generate(self, indices: range) -> Iterator[Generated]:
        """Generate the images; those of one layer are optimized together."""
        by_layer: dict[str, list[Recipe]] = {}
        for index in indices:
            recipe = draw_recipe(self.seed, index, self._channels)
            by_layer.setdefault(recipe.layer, []).append(recipe)
        generated: dict[int, Generated] = {}
        for recipes in by_layer.values():
            for begin in range(0, len(recipes), self.batch):
                generated |= self._generate_with_retries(recipes[begin : begin + self.batch])
        return (generated[index] for index in indices)

    def regenerate(self, record: Mapping[str, Any]) -> Pixels | None:
        """Generate an image again; None if it was generated on another CPU model, or on a GPU.

        A GPU does not add in a fixed order, so its results vary.
        """
        if record["made_on"] != self._made_on() or self.device != "cpu":
            return None
        recipe = Recipe.from_json(record["recipe"])
        # Most networks return the same pixels in a batch of two, which is four times as fast.
        image: Pixels = self._visualize([recipe], batch=2).images[0]
        if pixel_sha256(image) != record["sha256"]:
            image = self._visualize([recipe], batch=self.batch).images[0]
        return image

    def kind(self) -> str:
        """Return "feature visualizations"."""
        return KIND

    def settings(self) -> dict[str, Any]:
        """Return everything that the images depend on besides their index and the machine."""
        plain = {name: getattr(self, name) for name in _PLAIN_SETTINGS}
        return {**plain, "layers": list(self.layers)}

    def licence(self) -> str:
        """Return CC0, or a note that the licence of the weights may apply."""
        return "CC0-1.0" if self.model == DEFAULT and self.weights is None else _OTHER_LICENCE

    def versions(self) -> dict[str, Any]:
        """Return the version of feature visualizations, which is raised when images change."""
        return {"featviz_version": FEATVIZ_VERSION}

    def chunk_size(self) -> int:
        """Return how many images are generated between two commits to the disk.

        This is one batch of one layer. If a batch is larger than a group of images that share a
        layer, it is enough groups to fill a batch of every layer.
        """
        groups = self.batch // GROUP
        return GROUP if groups <= 1 else groups * GROUP * len(self.layers)

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Any], *, weights: Path | None, model: str | None
    ) -> Self:
        """Return the generator of a dataset from the settings in its manifest, on the CPU.

        The network is opened when the first image is generated.

        Args:
            settings: settings in the manifest.
            weights: file of the network's weights, unless they come with the network.
            model: must repeat a model of the form module:function in the manifest, because a
                file alone must not run code.

        Raises:
            PipelineError: if the manifest's model is a function and `model` does not repeat it.
        """
        if ":" in settings["model"] and model != settings["model"]:
            raise PipelineError(
                f"the dataset's manifest names the model {settings['model']}, which would be "
                f"imported and run; if you trust it, pass --model {settings['model']}"
            )
        plain = {name: settings[name] for name in _PLAIN_SETTINGS}
        return cls(
            **plain,
            layers=tuple(settings["layers"]),
            weights=weights,
            random_weights=settings["weights_sha256"] == RANDOM,
        )

    @property
    def _channels(self) -> dict[str, int]:
        return {name: layer.channels for name, layer in self._prepared().layers.items()}

    def _prepared(self) -> PreparedNetwork:
        network = open_trained(self.model, self.weights, random_weights=self.random_weights)
        if network.weights_sha256 != self.weights_sha256:
            raise PipelineError(
                f"the dataset was generated with weights of SHA-256 {self.weights_sha256}, but "
                f"these have {network.weights_sha256}; pass the original file with --weights"
            )
        return _prepare(
            self.model, self.weights, self.random_weights, self.layers, self.device, self.precision
        )

    def _generate_with_retries(self, recipes: list[Recipe]) -> dict[int, Generated]:
        """Generate images of one layer; generate dead ones again with the next attempt."""
        generated = {}
        while recipes:
            visualized = self._visualize(recipes, batch=self.batch)
            if not any(math.isfinite(value) for value in visualized.values):
                raise PipelineError(
                    f"{self.model}: {explain_nonfinite(self._prepared(), visualized.images)}; "
                    "pass other weights with --weights, or earlier layers with --layer"
                )
            dead = []
            for recipe, image, value in zip(
                recipes, visualized.images, visualized.values, strict=False
            ):
                statistics = measure(image)
                if is_dead(statistics) or not math.isfinite(value):
                    dead.append(recipe)
                    continue
                record = {
                    "model": self.model,
                    "weights_sha256": self.weights_sha256,
                    "recipe": recipe.to_json(),
                    "steps": self.steps,
                    "objective": round(float(value), 6),
                    "statistics": {name: round(each, 6) for name, each in statistics.items()},
                    "made_on": self._made_on(),
                }
                generated[recipe.index] = Generated(image, record, recipe.attempt + 1)
            recipes = [self._next_attempt(recipe) for recipe in dead]
        return generated

    def _next_attempt(self, recipe: Recipe) -> Recipe:
        if recipe.attempt + 1 == _MAX_ATTEMPTS:
            raise PipelineError(
                f"image {recipe.index} was flat in {_MAX_ATTEMPTS} attempts: layer {recipe.layer} "
                f"of {self.model} has nothing to show; pass other layers with --layer, or increase "
                "--steps"
            )
        return draw_recipe(self.seed, recipe.index, self._channels, attempt=recipe.attempt + 1)

    def _visualize(self, recipes: Sequence[Recipe], *, batch: int) -> OptimizedImages:
        prepared = self._prepared()
        filled = [*recipes, *[recipes[-1]] * (batch - len(recipes))]
        size = (self.height, self.width)
        layer = prepared.layers[recipes[0].layer]
        try:
            with _one_thread():
                return optimize_images(
                    prepared,
                    recipe_objective(filled, layer.channels),
                    recipe_canvas(filled, size, prepared.device),
                    plan_stages(size, self.steps),
                    [recipe.key for recipe in filled],
                    scales=[recipe.scale for recipe in filled],
                )
        except torch.OutOfMemoryError as error:
            raise PipelineError(
                f"{self.device} is out of memory with a batch of {len(filled)} images; use a "
                "smaller --batch-size and another --out"
            ) from error

    def _made_on(self) -> dict[str, str]:
        """Return what an image's bits depend on besides its settings."""
        return {"torch": torch.__version__, "device": describe_device(self.device)}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread on the CPU: the bits of a sum depend on how threads divide it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _prepare(
    model: str,
    weights: Path | None,
    random_weights: bool,
    layers: tuple[str, ...],
    device: str,
    precision: Precision,
) -> PreparedNetwork:
    network = open_trained(model, weights, random_weights=random_weights)
    return prepare_network(network, layers, device=torch.device(device), precision=precision)


@lru_cache(maxsize=1)
def open_trained(model: str, weights: Path | None, *, random_weights: bool) -> Network:
    """Open a CIFAR network by name, or any network that `featviz.open_network` can open.

    Raises:
        PipelineError: if the network is unknown, or its weights are missing or do not fit.
        OSError: if its weights cannot be read.
    """
    try:
        if not is_cifar_network(model):
            network = open_network(model, weights=weights, random_weights=random_weights)
            # The user's module may have imported a package with the name of one of ours.
            check_packages()
            return network
        if weights is None and not random_weights:
            raise PipelineError(
                f"{model} comes without trained weights; pass a file of weights with --weights"
            )
        state = None if weights is None else read_weights(weights)
        classes = None if state is None else n_classes(state, partial(build_network, model))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = build_network(model, classes or 10)
        sha256 = RANDOM
        notes: tuple[str, ...] = ()
        if weights is not None and state is not None:
            notes = tuple(load_weights(module, state, weights))
            sha256 = file_sha256(weights)
        return network_from_module(
            module, name=model, mean=_HALF, std=_HALF, weights_sha256=sha256, notes=notes
        )
    except (ValueError, ModuleNotFoundError) as error:
        raise PipelineError(" ".join(str(error).split())) from error


def plan_generator(
    *,
    model: str,
    weights: Path | None,
    random_weights: bool,
    layers: Sequence[str],
    seed: int,
    size: tuple[int, int],
    steps: int,
    device: str,
    precision: Precision | None,
    batch: int | None,
    jobs: int,
    earlier: Mapping[str, Any],
) -> FeatvizGenerator:
    """Return the generator for a user's options, with the best defaults for this machine.

    Args:
        model: name of a network; see `featviz.open_network`.
        weights: file of its weights; None for those that come with it.
        random_weights: use random weights.
        layers: names of layers; empty for the network's `default_layers`.
        seed: seed of all images.
        size: (height, width) in pixels.
        steps: optimization steps.
        device: "auto" or the name of a torch device.
        precision: None for the precision of the dataset so far, or the faster one.
        batch: None for the batch size of the dataset so far, or the largest useful one that fits.
        jobs: number of processes that share the memory of a CPU.
        earlier: settings of the dataset so far; empty for a new dataset.

    Raises:
        PipelineError: if the model, a layer, the steps or the device are invalid.
        OSError: if the weights cannot be read.
    """
    chosen = find_device(device)
    network = open_trained(model, weights, random_weights=random_weights)
    try:
        named = find_layers(network.inventory.layers, layers) or network.default_layers()
        stages = plan_stages(size, steps)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    decided = precision or earlier.get("precision") or best_precision(network, chosen)
    batch = batch or earlier.get("batch")
    if batch is None:
        window = max(stage.window[0] * stage.window[1] for stage in stages)
        share = _memory(chosen) * _MEMORY_SHARE / jobs
        batch = _largest_batch(share / image_bytes(network, size, window), chosen.type)
    return FeatvizGenerator(
        model=model,
        weights_sha256=network.weights_sha256,
        layers=tuple(dict.fromkeys(each.name for each in named)),
        seed=seed,
        height=size[0],
        width=size[1],
        steps=steps,
        precision=decided,
        weights=weights,
        random_weights=random_weights,
        device=str(chosen),
        batch=batch,
    )


def find_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the GPU of this process, or the CPU.

    A process that a launcher started uses the GPU of its local rank; see `local_gpu`.

    Raises:
        PipelineError: if this machine does not have the device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        return torch.device(f"cuda:{local_gpu(torch.cuda.device_count())}")
    try:
        device = torch.device(name)
        if device.type not in _MAX_BATCH:
            raise RuntimeError("not supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PipelineError(
            f"device {name!r} is not available ({str(error).splitlines()[0]}); use auto or cpu"
        ) from error
    return device


def describe_device(name: str) -> str:
    """Return what decides the bits of a device's results: its model, or a CPU's instructions."""
    device = torch.device(name)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    instructions = [torch.backends.cpu.get_cpu_capability()]
    if torch.cpu._is_avx512_bf16_supported():
        instructions.append("BF16")
    if torch.cpu._is_amx_tile_supported():
        instructions.append("AMX")
    return " ".join(["CPU", *instructions])


def image_bytes(network: Network, size: tuple[int, int], window: int) -> float:
    """Estimate the memory in bytes that the optimization of one image takes.

    It holds the activations of all operations and their gradients, and a dozen copies of the image.

    Args:
        network: the network.
        size: (height, width) of the image in pixels.
        window: pixels that the network sees.
    """
    known = network.inventory.layers
    parents = {name.rpartition(".")[0] for name in known}
    values = sum(
        each.channels * each.positions for each in known.values() if each.name not in parents
    )
    seen = network.inventory.size or (128, 192)
    part = 1 if network.inventory.size else window / (seen[0] * seen[1])
    return 4 * (2 * values * part + 12 * 3 * size[0] * size[1])


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return available_memory()


def _largest_batch(fitting: float, device_type: str) -> int:
    """Return the largest power of two that fits into memory and makes the device faster."""
    largest = min(max(fitting, 2), _MAX_BATCH.get(device_type, GROUP))
    return int(2 ** math.floor(math.log2(largest)))
