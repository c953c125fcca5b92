"""The command pixmix-train: help, options, errors and results."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from pipelines.cli import train as command
from pipelines.cli import training_options
from pipelines.datasets import DATASETS
from pipelines.errors import PipelineError
from pipelines.loading.config import ON_DECODE_ERROR
from pipelines.models.registry import open_model
from pipelines.system.process_group import Processes
from pipelines.training.augmentations import AUGMENTATIONS
from pipelines.training.checkpoints import find_checkpoints
from pipelines.training.recipes import (
    AUGMENTS,
    Recipe,
    TrainConfig,
    TrainResult,
)
from shard_sets import drawn_images, encoded, write_shards
from training_sets import (
    read_checkpoint,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, arguments)


def recipe_of(dataset: str, *arguments: str) -> Recipe:
    """Return the recipe of a command line."""
    # Inside the context of the group, because click caches the command names in the help.
    with command.main.make_context("pixmix-train", [dataset, "--help"]) as group:
        context = command.main.commands[dataset].make_context(
            dataset, ["--out", "run", *arguments], parent=group
        )
    return command._recipe(DATASETS[dataset], context.params)


def test_the_choices_of_options_equal_those_of_the_library() -> None:
    assert training_options.ON_DECODE_ERROR == ON_DECODE_ERROR
    assert set(AUGMENTATIONS) == set(AUGMENTS) - {"none", "pixmix"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_help_shows_the_defaults_of_the_recipe(dataset: str) -> None:
    recipe = recipe_of(dataset, "--no-mixing-set")
    text = " ".join(run(dataset, "--help-all").stdout.split())
    for name, value in (
        ("model", recipe.model),
        ("epochs", recipe.epochs),
        ("batch-size", recipe.batch_size),
        ("learning-rate", recipe.learning_rate),
        ("warmup-epochs", 0),
        ("weight-decay", 0.0005),
        ("dropout", f"{recipe.dropout:g}"),
        ("k", recipe.pixmix.k),
        ("beta", f"{recipe.pixmix.beta:g}"),
        ("severity", f"{recipe.pixmix.severity:g}"),
    ):
        described = text.partition(f" --{name} ")[2].partition(" --")[0]
        assert re.search(rf"\[default: {re.escape(str(value))}[;\]]", described), name


@pytest.mark.parametrize(
    ("dataset", "severity"), [("cifar10", 3), ("cifar100", 3), ("imagenet", 1), ("folder", 1)]
)
def test_augmix_defaults_to_its_authors_recipe(dataset: Any, severity: float) -> None:  # noqa: ANN401
    recipe = recipe_of(dataset, "--augment", "augmix")
    assert (recipe.augmix_severity, recipe.augmix_all_ops) == (severity, False)
    assert (recipe.jsd, recipe.jsd_weight) == (True, 12)
    without = recipe_of(dataset, "--augment", "augmix", "--no-jsd", "--all-ops")
    assert (without.jsd, without.augmix_all_ops, without.pixmix.all_ops) == (False, True, False)
    pixmix = recipe_of(dataset, "--no-mixing-set", "--all-ops")
    assert (pixmix.jsd, pixmix.augmix_all_ops, pixmix.pixmix.all_ops) == (False, False, True)


@pytest.mark.slow
def test_writing_shards_shows_a_progress_bar_for_each_split(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = run(
        "digits", "--out", str(tmp_path / "run"), "--batch-size", "5000", "--no-mixing-set"
    )
    assert result.exit_code == 1
    ends = re.findall(r"([\d,]+) of ([\d,]+) samples", result.stderr)
    assert [done for done, total in ends if done == total] == ["1,438", "359"]


def test_the_command_trains_and_prints_its_result(digits: Path, tmp_path: Path) -> None:
    arguments = ("digits", "--data", str(digits), "--out", str(tmp_path / "run"), "--epochs", "1",
                 "--batch-size", "256", "--precision", "float32", "--no-mixing-set")  # fmt: skip
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["finished"], printed["step"]) == (True, 5)
    assert printed["history"][0]["test_error"] < 1
    assert Path(printed["checkpoint"]).exists()
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "already contains a training run; pass --resume" in refused.stderr
    assert run(*arguments, "--resume", "auto").exit_code == 0


@pytest.mark.slow
def test_another_recipe_can_fine_tune_the_weights_in_another_folder(
    digits: Path, tmp_path: Path
) -> None:
    def trained(name: str, *more: str) -> Result:
        return run("digits", "--data", str(digits), "--out", str(tmp_path / name), "--batch-size",
                   "512", "--device", "cpu", "--precision", "float32", "--no-mixing-set",
                   *more)  # fmt: skip

    assert trained("run", "--epochs", "1").exit_code == 0
    (checkpoint,) = find_checkpoints(tmp_path / "run")
    refused = trained("run", "--epochs", "2", "--resume", "auto")
    assert refused.exit_code == 1
    remedy = f"use 1, or fine-tune its weights in another --out with --weights {checkpoint}\n"
    assert refused.stderr.endswith(remedy)
    # These steps hardly change the weights: the learning rate is at most 1e-6.
    more = ("--epochs", "2", "--weights", str(checkpoint), "--learning-rate", "0", "--seed", "7")
    assert trained("more", *more).exit_code == 0
    before, after = (
        torch.load(path, weights_only=True)["state_dict"]["fc.weight"]
        for path in (checkpoint, find_checkpoints(tmp_path / "more")[-1])
    )
    assert torch.allclose(before, after, rtol=0, atol=1e-3)
    drawn = open_model("wrn_10_1", 10, seed=7).fc.weight
    assert not torch.allclose(drawn, after, rtol=0, atol=1e-1)
    # Weights of another network would not fit.
    refused = trained("run", "--epochs", "1", "--model", "wrn_10_2", "--resume", "auto")
    assert refused.stderr.endswith("; use wrn_10_1, or use another --out\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifar10", "--no-mixing-set"), "pass its folder or address with --data"),
        (("cifar10", "--data", "empty", "--no-mixing-set"), "cifar-10-python.tar.gz"),
        (("folder", "--data", "empty", "--no-mixing-set"), "make shards of your images first"),
        (("digits", "--data", "empty"), "omit --data to write shards now"),
        (("digits", "--model", "resnet999"), "network 'resnet999' not found"),
        (("digits", "--batch-size", "5000"), "fewer than batch_size 5000"),
        (
            ("digits", "--batch-size", "64", "--shard-partitions", "7"),
            "not divisible by shard_partitions 7",
        ),
        (("digits", "--device", "cuda:63"), "device 'cuda:63' is not available"),
        (("digits", "--device", "cpu", "--sync-bn"), "--sync-bn needs GPUs"),
        (("digits", "--val-fraction", "0.5", "--data", "one"), "make it again with"),
        (("digits", "--out", "file/run"), "file"),
        (("digits", "--model", "wrn_16_0"), "network 'wrn_16_0' not found"),
        (("digits", "--model", "resnext29_0x4"), "network 'resnext29_0x4' not found"),
    ],
)
def test_invalid_inputs_end_with_a_one_line_error(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    if "one" in arguments:
        from pipelines.cli.shard import main as shard

        made = CliRunner().invoke(shard, ["digits", "one", "--num-shards", "1", "--jobs", "1"])
        assert made.exit_code == 0
    if arguments[0] == "digits" and "--data" not in arguments:
        arguments = (*arguments, "--data", str(digits))
    (tmp_path / "file").touch()
    if "--no-mixing-set" not in arguments:
        arguments = (*arguments, "--no-mixing-set")
    result = run(*arguments, *(() if "--out" in arguments else ("--out", "run")))
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("cifar10", "--data", "."),
        ("digits",),
        ("folder", "--data", "."),
        ("cifar10", "--mixing-set", ".", "--no-mixing-set"),
        ("digits", "--augment", "none", "--mixing-set", "."),
        ("digits", "--augment", "none", "--jsd"),
        ("digits", "--augment", "none", "--k", "9"),
        ("digits", "--augment", "augmix", "--no-mixing-set"),
        ("digits", "--augment", "trivialaugment", "--all-ops"),
        ("digits", "--model", "resnext29_32x4", "--dropout", "0.3", "--no-mixing-set"),
        ("digits", "--epochs", "3", "--warmup-epochs", "3", "--no-mixing-set"),
        ("digits", "--batch-size", "8", "--grad-accum-steps", "9", "--no-mixing-set"),
        ("digits", "--epochs", "0", "--no-mixing-set"),
        ("digits", "--learning-rate", "nan", "--no-mixing-set"),
        ("digits", "--severity", "11", "--no-mixing-set"),
        ("digits", "--resume", "yes", "--no-mixing-set"),
        ("digits", "--pretrained", "--weights", __file__, "--no-mixing-set"),
        ("digits", "--on-mixing-decode-error", "skip", "--no-mixing-set"),
        ("digits", "--on-decode-error", "skip", "--no-mixing-set"),
        ("folder", "--no-mixing-set", "--max-decode-errors", "7"),
    ],
)
def test_wrong_usage_exits_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, "--out", "run")
    assert result.exit_code == 2, result.output
    assert "Error: " in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["mixing set", "images to mix with", "folder of results"])
def test_missing_inputs_are_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    mixing = "nowhere" if missing == "mixing set" else "empty"
    more = (
        ("--no-mixing-set", "--out", "file/run")
        if missing == "folder of results"
        else ("--mixing-set", mixing, "--out", "run")
    )
    before = sorted(tmp_path.iterdir())
    result = run("digits", *more)
    assert result.exit_code == (2 if mixing == "nowhere" else 1)
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert sorted(tmp_path.iterdir()) == before


def test_image_size_crops_the_images(tmp_path: Path) -> None:
    contents = [encoded(image) for image in drawn_images(8)]
    write_shards(tmp_path / "data" / "train", contents, sizes=(8,))
    arguments = ("folder", "--data", f"{tmp_path}/data", "--no-mixing-set", "--epochs", "1",
                 "--out", f"{tmp_path}/run", "--model", "networks:classifier", "--batch-size", "4",
                 "--workers", "0", "--device", "cpu", "--resume", "auto")  # fmt: skip
    assert run(*arguments, "--image-size", "40").exit_code == 0
    network = read_checkpoint(find_checkpoints(tmp_path / "run")[-1]).network
    assert network.image_size == 40
    refused = run(*arguments, "--image-size", "48")
    assert refused.exit_code == 1
    assert "image_size: " in refused.stderr
    assert "started with 40, this command has 48" in refused.stderr
    for dataset in ("digits", "cifar10"):
        assert run(dataset, "--out", "run", "--image-size", "40").exit_code == 2


def test_decode_errors_are_handled_as_the_options_say(tmp_path: Path) -> None:
    contents = [encoded(image) for image in drawn_images(20)]
    for name, bad in (("train", (3, 8)), ("test", (5,))):
        damaged = [content[:50] if i in bad else content for i, content in enumerate(contents)]
        write_shards(tmp_path / "data" / name, damaged, sizes=(20,))
    (tmp_path / "mixing").mkdir()
    for i, content in enumerate([*contents[:3], b"not an image"]):
        (tmp_path / "mixing" / f"{i}.png").write_bytes(content)

    def start(name: str, *more: str) -> Result:
        return run(
            "folder", "--data", f"{tmp_path}/data", "--mixing-set", f"{tmp_path}/mixing",
            "--out", f"{tmp_path}/{name}", "--cache-dir", f"{tmp_path}/cache", "--epochs", "1",
            "--model", "networks:classifier", "--batch-size", "20", "--workers", "0",
            "--precision", "float32", "--device", "cpu", "--json", *more,
        )  # fmt: skip

    refused = start("run")
    assert refused.exit_code == 1
    assert "3.png" in refused.stderr
    assert "pixmix-train: --on-mixing-decode-error skip" in refused.stderr
    refused = start("run", "--on-mixing-decode-error", "skip")
    assert refused.exit_code == 1
    assert "pixmix-train: --on-decode-error" in refused.stderr
    refused = start("few", "--on-mixing-decode-error", "skip", "--on-decode-error", "skip",
                   "--max-decode-errors", "1")  # fmt: skip
    assert refused.exit_code == 1
    assert "more than max_decode_errors 1 (pixmix-train: --max-decode" in refused.stderr
    for policy in ("substitute", "skip"):
        # "skip" resumes the run that failed above.
        done = start("run" if policy == "skip" else policy, "--on-mixing-decode-error", "skip",
                    "--on-decode-error", policy, "--resume", "auto")  # fmt: skip
        assert done.exit_code == 0, done.output
        (record,) = json.loads(done.stdout)["history"]
        # The training set has 18 or 20 images, the test set 19.
        for split, n in (("train", 18 if policy == "skip" else 20), ("test", 19)):
            wrong = record[f"{split}_error"] * n
            assert wrong == pytest.approx(round(wrong)), (split, policy)


@pytest.mark.parametrize(("sharing", "workers"), [(0, 4), (1, 3), (3, 1), (9, 1)])
def test_the_default_number_of_workers_is_limited_by_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharing: int, workers: int
) -> None:
    write_shards(tmp_path / "data", [b"not an image"] * 4, sizes=(4,))
    # Some processes share the seven cores of this one, and others have other cores.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    monkeypatch.setattr(Processes, "gather", lambda _, own: [own] * (1 + sharing) + [own + 1] * 5)
    workers_seen = []

    def found(training: TrainConfig, *_: object) -> TrainResult:
        workers_seen.append(training.loader.num_workers)
        raise PipelineError("it is known")

    monkeypatch.setattr("pipelines.training.loop.train", found)
    arguments = ("folder", "--data", f"{tmp_path}/data", "--no-mixing-set", "--device", "cpu",
                 "--out", f"{tmp_path}/run")  # fmt: skip
    for more in ((), ("--workers", "9")):
        assert "it is known" in run(*arguments, *more).stderr
    assert workers_seen == [workers, 9]


def test_a_batch_without_decodable_samples_ends_training(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", [b"not an image"] * 4, sizes=(4,))
    ended = run(
        "folder", "--data", f"{tmp_path}/data", "--no-mixing-set", "--out", f"{tmp_path}/run",
        "--model", "networks:classifier", "--batch-size", "4", "--workers", "0", "--device", "cpu",
        "--precision", "float32", "--on-decode-error", "skip",
    )  # fmt: skip
    assert ended.exit_code == 1
    assert "no sample of this process's part of step 0 can be decoded" in ended.stderr
