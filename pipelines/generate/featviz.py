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
from pipelines.generate.generator import Generated, Pixels, pixel_sha256
from pipelines.models.registry import build_network, is_cifar_network
from pipelines.system.files import file_sha256
from pipelines.system.processes import available_memory
from pipelines.system.ranks import local_gpu
from pixmix.commands import check_packages

KIND = "feature visualizations"

_PLAIN_SETTINGS = (
    "seed", "model", "weights_sha256", "height", "width", "steps", "precision", "batch",
)  # fmt: skip

OTHERS = "as the licence of the network's weights allows"

_MOST_ATTEMPTS = 8
_HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of the input of networks for CIFAR."""
_MAX_BATCH = {"cpu": GROUP, "mps": 32, "cuda": 128}
"""A CPU gains nothing by more than 8 images at once; a GPU has to be filled."""
_MEMORY_SHARE = 0.5
"""Of a machine's or a GPU's memory, that batches may take."""


@dataclass(frozen=True, kw_only=True)
class FeatvizGenerator:
    """Generates image i of a seed, a network and some of its layers.

    weights_sha256: of the network's weights, see `featviz.Network`. layers: names, in order.
    height, width: pixels. steps: of the optimization. precision: of the network.
    batch: images that are optimized together; fewer are filled up with copies, for some networks
    are computed by other kernels at another number, which round otherwise.
    weights: the file of the weights, if they are one's own; random_weights: take none.
    device: as torch names it.
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

    def generate(self, numbers: range) -> Iterator[Generated]:
        """Generate images, those of a layer together."""
        by_layer: dict[str, list[Recipe]] = {}
        for index in numbers:
            recipe = draw_recipe(self.seed, index, self._channels)
            by_layer.setdefault(recipe.layer, []).append(recipe)
        generated: dict[int, Generated] = {}
        for recipes in by_layer.values():
            for begin in range(0, len(recipes), self.batch):
                generated |= self._generate_living(recipes[begin : begin + self.batch])
        return (generated[index] for index in numbers)

    def generate_again(self, record: Mapping[str, Any]) -> Pixels | None:
        """Generate an image again, None if it was made on another kind of machine, or on a GPU.

        A GPU adds up in no fixed order.
        """
        if record["made_on"] != self._made_on() or self.device != "cpu":
            return None
        recipe = Recipe.from_json(record["recipe"])
        # Most networks give the same for two as for a whole batch, which takes four times as long.
        few: Pixels = self._visualize([recipe], batch=2).images[0]
        if pixel_sha256(few) == record["sha256"]:
            return few
        again: Pixels = self._visualize([recipe], batch=self.batch).images[0]
        return again

    def kind(self) -> str:
        """Return what the images are."""
        return KIND

    def settings(self) -> dict[str, Any]:
        """Return all that the images depend on, besides their number and the machine."""
        plain = {name: getattr(self, name) for name in _PLAIN_SETTINGS}
        return {**plain, "layers": list(self.layers)}

    def licence(self) -> str:
        """Return CC0, or that another's weights may have a say."""
        return "CC0-1.0" if self.model == DEFAULT and self.weights is None else OTHERS

    def versions(self) -> dict[str, Any]:
        """Return the version that counts the changes of images."""
        return {"featviz_version": FEATVIZ_VERSION}

    def chunk_size(self) -> int:
        """Return how many images are generated between two commits to the disk.

        One batch of one layer; where batches are larger than the groups of images that share a
        layer, as many groups of every layer as fill them.
        """
        groups = self.batch // GROUP
        return GROUP if groups <= 1 else groups * GROUP * len(self.layers)

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Any], *, weights: Path | None, model: str | None
    ) -> Self:
        """Return the generator of a dataset from the settings in its manifest, for the CPU.

        The network is opened when an image is first generated.

        Args:
            settings: of the manifest.
            weights: file of the network's weights, where they are none that come with it.
            model: repeats the manifest's, where that is a function: a file is not to have code run.

        Raises:
            PipelineError: if the set's network is a function, and is not repeated.
        """
        if ":" in settings["model"] and model != settings["model"]:
            raise PipelineError(
                f"the set's manifest names {settings['model']}, which would be imported and run; "
                f"if you trust it, repeat it: --model {settings['model']}"
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
                f"the set was made with weights of sha256 {self.weights_sha256}, these have "
                f"{network.weights_sha256}; name the file of those with --weights"
            )
        return _prepare(
            self.model, self.weights, self.random_weights, self.layers, self.device, self.precision
        )

    def _generate_living(self, recipes: list[Recipe]) -> dict[int, Generated]:
        """Generate images of one layer, dead ones again with another attempt."""
        generated = {}
        while recipes:
            made = self._visualize(recipes, batch=self.batch)
            if not any(math.isfinite(value) for value in made.values):
                raise PipelineError(
                    f"{self.model}: {explain_nonfinite(self._prepared(), made.images)}; use "
                    "other weights with --weights, or name layers before it with --layer"
                )
            dead = []
            for recipe, image, value in zip(recipes, made.images, made.values, strict=False):
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
            recipes = [self._another(recipe) for recipe in dead]
        return generated

    def _another(self, recipe: Recipe) -> Recipe:
        if recipe.attempt + 1 == _MOST_ATTEMPTS:
            raise PipelineError(
                f"image {recipe.index} came out flat {_MOST_ATTEMPTS} times: layer "
                f"{recipe.layer} of {self.model} gives nothing to see; name others with "
                "--layer, or give more --steps"
            )
        return draw_recipe(self.seed, recipe.index, self._channels, attempt=recipe.attempt + 1)

    def _visualize(self, recipes: Sequence[Recipe], *, batch: int) -> OptimizedImages:
        prepared = self._prepared()
        company = [*recipes, *[recipes[-1]] * (batch - len(recipes))]
        size = (self.height, self.width)
        layer = prepared.layers[recipes[0].layer]
        try:
            with _one_thread():
                return optimize_images(
                    prepared,
                    recipe_objective(company, layer.channels),
                    recipe_canvas(company, size, prepared.device),
                    plan_stages(size, self.steps),
                    [recipe.key for recipe in company],
                    scales=[recipe.scale for recipe in company],
                )
        except torch.OutOfMemoryError as error:
            raise PipelineError(
                f"the memory of {self.device} is full with {len(company)} images at once; give a "
                "smaller --batch-size and another --out"
            ) from error

    def _made_on(self) -> dict[str, str]:
        """Return on what an image's bits depend besides its settings."""
        return {"torch": torch.__version__, "device": describe_device(self.device)}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let the CPU work with one thread: how a sum is divided among threads shows in its bits."""
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
    """Open a network for CIFAR by name, or another; see `featviz.open_network`.

    Raises:
        PipelineError: if it cannot be had, in one line.
        OSError: if its weights cannot be read.
    """
    try:
        if not is_cifar_network(model):
            network = open_network(model, weights=weights, random_weights=random_weights)
            # A module of the user's may have brought a package of the name of one of ours.
            check_packages()
            return network
        if weights is None and not random_weights:
            raise PipelineError(
                f"{model} comes without trained weights; name a file of them with --weights"
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
    """Return the generator for what a user asks, where they leave something open the best here.

    Args:
        model: name of a network; see `featviz.open_network`.
        weights: file of its weights, None for those it comes with.
        random_weights: take it untrained.
        layers: none for the network's `default_layers`.
        seed: of all images.
        size: (height, width) in pixels.
        steps: of the optimization.
        device: "auto", or as torch names it.
        precision: None for that of the set so far, or the faster one.
        batch: None for that of the set so far, or as many as are of use and fit.
        jobs: processes that share the memory of a CPU.
        earlier: settings of the set so far, empty if there is none.

    Raises:
        PipelineError: if model, layers, steps or device are none.
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
    """Return the device of a name; "auto" is this process's GPU, or the CPU.

    A process that a launcher began takes the GPU of its number on the machine: see `local_gpu`.

    Raises:
        PipelineError: if there is no such device here.
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
            raise RuntimeError("nothing is computed there")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PipelineError(
            f"device {name!r} is not available ({str(error).splitlines()[0]}); use auto or cpu"
        ) from error
    return device


def describe_device(name: str) -> str:
    """Return what of a device decides a result's bits: its model, or a CPU's instructions."""
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
    """Return about how much memory the optimization of an image takes.

    Activations of all operations, once kept and once as gradients, and a dozen copies of the
    image itself.

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
    """Return the largest power of two that fits and is of use."""
    most = min(max(fitting, 2), _MAX_BATCH.get(device_type, GROUP))
    return int(2 ** math.floor(math.log2(most)))
