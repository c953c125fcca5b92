import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn
from torch.nn import functional

import networks
from hosts import ADDRESSES, free_port, two_hosts
from pipelines.cli import train as command
from pipelines.cli import training_options
from pipelines.datasets import DATASETS
from pipelines.errors import PipelineError
from pipelines.generate.featviz import open_trained
from pipelines.loading.batches import ON_DECODE_ERROR
from pipelines.loading.loader import eval_loader
from pipelines.models.checkpoints import open_checkpoint
from pipelines.models.registry import initialize_from, open_model
from pipelines.shards.format import ShardSet, open_shards
from pipelines.shards.remote import open_set
from pipelines.system.process_group import Processes
from pipelines.system.ranks import World
from pipelines.training.augmentations import AUGMENTATIONS, BaselineAugmentation, augmix, torch_seed
from pipelines.training.checkpoints import find_checkpoints, keep_latest, save_checkpoint
from pipelines.training.data import hold_out, open_training_data, outputs_for
from pipelines.training.loop import train
from pipelines.training.recipes import (
    AUGMENTS,
    Recipe,
    StepProgress,
    TrainConfig,
    TrainResult,
    named_recipe,
)
from pipelines.training.step import jensen_shannon, loss_of_views, update_average
from pipelines.training.tracking import log_to_tensorboard
from pixmix.settings import PixMixSettings
from shard_sets import drawn_images, encoded, write_shards
from training_sets import read_checkpoint, training

CIFAR = named_recipe("cifar")
DIGITS = named_recipe("digits")
IMAGENET = named_recipe("imagenet")

ALONE = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits")
    open_training_data("digits", None, folder, lambda _done, _total: None)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Any:  # noqa: ANN401
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, arguments)


# --- Recipes -------------------------------------------------------------------------------------


def test_the_recipes_are_the_papers() -> None:
    assert (CIFAR.model, CIFAR.epochs, CIFAR.batch_size, CIFAR.dropout) == (
        "wrn_40_4",
        100,
        128,
        0.3,
    )
    assert (CIFAR.learning_rate, CIFAR.momentum, CIFAR.weight_decay) == (0.1, 0.9, 5e-4)
    assert CIFAR.pixmix == PixMixSettings(k=4, beta=3, severity=3)
    assert (IMAGENET.model, IMAGENET.epochs, IMAGENET.batch_size) == ("resnet50", 90, 256)
    assert IMAGENET.learning_rate == 0.01
    assert IMAGENET.pixmix == PixMixSettings(k=4, beta=4, severity=1)
    assert (CIFAR.final_learning_rate, IMAGENET.final_learning_rate) == (1e-6, 1e-6)


def test_the_learning_rate_falls_by_a_cosine_from_step_to_step() -> None:
    rates = [CIFAR.learning_rate_at(step, 390) for step in range(39_001)]
    assert rates[0] == 0.1
    assert rates[39_000] == pytest.approx(1e-6)
    assert rates[19_500] == pytest.approx((0.1 + 1e-6) / 2)
    assert all(later < earlier for earlier, later in pairwise(rates))
    expected = 1e-6 + (0.1 - 1e-6) * 0.5 * (1 + math.cos(math.pi * 1234 / 39_000))
    assert rates[1234] == pytest.approx(expected)


def test_the_learning_rate_rises_while_it_warms_up() -> None:
    warm = replace(CIFAR, warmup_epochs=2.0)
    rates = [warm.learning_rate_at(step, 10) for step in range(25)]
    assert rates[:20] == pytest.approx([0.1 * (step + 1) / 21 for step in range(20)])
    assert rates[20] == 0.1
    assert rates[21] < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"learning_rate": 1e300}, "learning_rate is 1e.300"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"augment": "cutout"}, "augment is 'cutout'; must be one of none, pixmix"),
        ({"jsd": True, "augment": "none"}, "jsd needs augmented images"),
    ],
)
def test_a_recipe_refuses_nonsense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CIFAR, **changes)


# --- Losses --------------------------------------------------------------------------------------


def test_the_divergence_of_views_is_the_mean_of_kullback_leibler_to_their_mixture() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(-1).numpy()
    mixture = p.mean(0)
    expected = (p * np.log(p / mixture)).sum(-1).mean()
    assert float(jensen_shannon(logits)) == pytest.approx(expected, rel=1e-5)
    assert float(jensen_shannon(logits[:1].repeat(3, 1, 1))) == pytest.approx(0, abs=1e-6)


def test_the_loss_of_views_is_the_first_ones_and_the_divergence() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4])
    loss = loss_of_views(logits, labels, jsd_weight=12, label_smoothing=0.1)
    first = functional.cross_entropy(logits[0], labels, label_smoothing=0.1)
    assert float(loss) == pytest.approx(float(first + 12 * jensen_shannon(logits)))


def test_averaged_weights_follow_slowly_and_counts_at_once() -> None:
    average = {"weight": torch.zeros(2), "n": torch.tensor(0)}
    update_average(average, {"weight": torch.ones(2), "n": torch.tensor(7)}, 0.9)
    torch.testing.assert_close(average["weight"], torch.full((2,), 0.1))
    assert int(average["n"]) == 7


def test_augmix_is_its_authors() -> None:
    from PIL import Image

    from pixmix.operations import CODES

    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    counts = dict.fromkeys(CODES, 0)
    for severity, all_ops in ((3.0, False), (1.0, False), (3.0, True)):
        for key in range(40):
            mixed = augmix(image, np.random.default_rng(key), severity=severity, all_ops=all_ops)
            expected, drawn = augmix_of_pillow(
                Image.fromarray(image), np.random.default_rng(key), severity, all_ops=all_ops
            )
            np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-3)
            for name in drawn:
                counts[name] += 1
                assert all_ops or name not in ("color", "contrast", "brightness", "sharpness")
    assert min(counts.values()) >= 5


def augmix_of_pillow(
    image: Any,  # noqa: ANN401 - Pillow's
    rng: np.random.Generator,
    severity: float,
    *,
    all_ops: bool,
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """AugMix as its authors wrote it, and the operations that it drew."""
    from PIL import Image, ImageEnhance, ImageOps

    width, height = image.size

    def affine(*entries: float) -> Any:  # noqa: ANN401
        return lambda each: each.transform(
            each.size, Image.Transform.AFFINE, entries, Image.Resampling.BILINEAR
        )

    def signed(value: float) -> float:
        return -value if rng.uniform() > 0.5 else value

    def level() -> float:
        return float(rng.uniform(0.1, severity))

    def enhanced(kind: Any) -> Any:  # noqa: ANN401
        factor = level() * 1.8 / 10 + 0.1
        return lambda each: kind(each).enhance(factor)

    def posterized() -> Any:  # noqa: ANN401
        bits = 4 - int(level() * 4 / 10)
        return lambda each: ImageOps.posterize(each, bits)

    def rotated() -> Any:  # noqa: ANN401
        degrees = signed(int(level() * 30 / 10))
        return lambda each: each.rotate(degrees, resample=Image.Resampling.BILINEAR)

    def solarized() -> Any:  # noqa: ANN401
        threshold = 256 - int(level() * 256 / 10)
        return lambda each: ImageOps.solarize(each, threshold)

    operations = {
        "autocontrast": lambda: ImageOps.autocontrast,
        "equalize": lambda: ImageOps.equalize,
        "posterize": posterized,
        "rotate": rotated,
        "solarize": solarized,
        "shear_x": lambda: affine(1, signed(level() * 0.3 / 10), 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, signed(level() * 0.3 / 10), 1, 0),
        "translate_x": lambda: affine(1, 0, signed(int(level() * (width / 3) / 10)), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, signed(int(level() * (height / 3) / 10))),
        "color": lambda: enhanced(ImageEnhance.Color),
        "contrast": lambda: enhanced(ImageEnhance.Contrast),
        "brightness": lambda: enhanced(ImageEnhance.Brightness),
        "sharpness": lambda: enhanced(ImageEnhance.Sharpness),
    }
    names = list(operations)[: 13 if all_ops else 9]
    weights = np.float32(rng.dirichlet([1, 1, 1]))
    share = np.float32(rng.beta(1, 1))
    mixed = np.zeros((height, width, 3), np.float32)
    drawn = []
    for i in range(3):
        chained = image.copy()
        for _ in range(rng.integers(1, 4)):
            drawn.append(names[rng.integers(len(names))])
            chained = operations[drawn[-1]]()(chained)
        mixed += weights[i] * np.asarray(chained, np.float32)
    return (1 - share) * np.asarray(image, np.float32) + share * mixed, drawn


@pytest.mark.parametrize(
    ("dataset", "severity"), [("cifar10", 3), ("cifar100", 3), ("imagenet", 1), ("folder", 1)]
)
def test_augmix_is_trained_by_its_authors_recipe(dataset: Any, severity: float) -> None:  # noqa: ANN401
    recipe = recipe_of(dataset, "--augment", "augmix")
    assert (recipe.augmix_severity, recipe.augmix_all_ops) == (severity, False)
    assert (recipe.jsd, recipe.jsd_weight) == (True, 12)
    without = recipe_of(dataset, "--augment", "augmix", "--no-jsd", "--all-ops")
    assert (without.jsd, without.augmix_all_ops, without.pixmix.all_ops) == (False, True, False)
    pixmix = recipe_of(dataset, "--no-mixing-set", "--all-ops")
    assert (pixmix.jsd, pixmix.augmix_all_ops, pixmix.pixmix.all_ops) == (False, False, True)


def recipe_of(dataset: str, *arguments: str) -> Recipe:
    """The recipe that a command trains by."""
    # Below the group, as it is started: click keeps the names of a command's help from then on.
    with command.main.make_context("pixmix-train", [dataset, "--help"]) as group:
        context = command.main.commands[dataset].make_context(
            dataset, ["--out", "run", *arguments], parent=group
        )
    return command._recipe(DATASETS[dataset], context.params)


@pytest.mark.parametrize("kind", ["augmix", "trivialaugment"])
def test_baseline_augmentations_draw_by_seed_step_and_place_alone(kind: Any) -> None:  # noqa: ANN401
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    augment = BaselineAugmentation(kind, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    state = torch.get_rng_state()
    together = augment(images, seed=1, step=2, first=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(augment(images[2:], seed=1, step=2, first=2), together[2:])
    mean, std = torch.tensor((0.5, 0.4, 0.3)), torch.tensor((0.2, 0.3, 0.4))
    views = augment(images, seed=1, step=2, first=0, views=3)
    plain = ((images * 255).round() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(views[:, 0], plain)
    assert len({tuple(view.flatten().tolist()) for view in views.flatten(0, 1)}) >= 8
    assert torch.equal(augment(images[2:], seed=1, step=2, first=2, views=3), views[2:])
    assert not torch.equal(augment(images, seed=1, step=3, first=0), together)
    assert len({torch_seed(a, b) for a in range(30) for b in range(30)}) == 900


# --- Checkpoints ---------------------------------------------------------------------------------


def test_the_newest_checkpoints_stay_and_half_written_ones_go(tmp_path: Path) -> None:
    for step in (5, 10, 100_000_000, 20_000_000):
        save_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}.pt", {"step": step})
    save_checkpoint(tmp_path / "checkpoints" / "best.pt", {"step": 5})
    keep_latest(tmp_path, 2)
    left = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert left == ["best.pt", "step-100000000.pt", "step-20000000.pt"]
    assert find_checkpoints(tmp_path)[-1].name == "step-100000000.pt"


# --- Training ------------------------------------------------------------------------------------


def weights_of(trained: TrainResult) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_checkpoint(trained.checkpoint).state_dict
    return state


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert not different, (
        f"{len(different)} of {len(first)} tensors differ, such as {different[0]}; after a resume, "
        "tests/test_training_state.py names the field of the state that was lost"
    )


def stopping_at(step: int, number: int = signal.SIGTERM) -> Any:  # noqa: ANN401
    def show(shown: StepProgress) -> None:
        if shown.step == step:
            os.kill(os.getpid(), number)

    return show


def loss_and_error(module: nn.Module, digits: Path) -> tuple[float, float]:
    """What a network gives for the test set, in one process."""
    loader = eval_loader(open_shards(digits / "test"), batch_size=100, rank=0, world_size=1)
    loss = wrong = 0.0
    with torch.no_grad():
        for images, labels, present in loader:
            logits = module(images)
            each = functional.cross_entropy(logits, labels, reduction="none")
            loss += float((each * present).sum())
            wrong += float(((logits.argmax(1) != labels) * present).sum())
    return loss / 359, wrong / 359


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"ema_decay": 0.9},
    "views": {"jsd": True},
    "augmix": {"augment": "augmix"},
    "views of augmix": {"augment": "augmix", "jsd": True},
    "parts": {"grad_accum_steps": 3},
    "bfloat16": {"precision": "bfloat16"},
    # No convolution: many processors have none for float16, and take 20 s for a step of others.
    "float16, averaged": {
        "precision": "float16",
        "ema_decay": 0.9,
        "model": "networks:linear",
        "dropout": 0.0,
    },
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_stopped_in_the_middle_of_an_epoch_ends_bit_for_bit_as_an_unbroken_one(
    digits: Path, tmp_path: Path, variant: str
) -> None:
    changes = VARIANTS[variant]
    unbroken = train(training(digits, tmp_path / "unbroken", **changes), ALONE)
    assert (unbroken.finished, unbroken.step, len(unbroken.history)) == (True, 10, 2)
    # In the middle of the first epoch, then of the second.
    for step in (3, 7):
        stopped = train(
            training(digits, tmp_path / "broken", resume=True, **changes), ALONE, stopping_at(step)
        )
        assert (stopped.finished, stopped.step) == (False, step)
    ended = train(training(digits, tmp_path / "broken", resume=True, **changes), ALONE)
    assert (ended.finished, ended.step) == (True, 10)
    assert_same(weights_of(ended), weights_of(unbroken))
    assert ended.history == unbroken.history
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (tmp_path / "broken" / name).read_bytes() == (
            tmp_path / "unbroken" / name
        ).read_bytes()


@pytest.mark.slow
def test_a_run_stopped_at_the_end_of_an_epoch_goes_on_too(digits: Path, tmp_path: Path) -> None:
    unbroken = train(training(digits, tmp_path / "unbroken"), ALONE)
    stopped = train(training(digits, tmp_path / "broken"), ALONE, stopping_at(5))
    # An evaluation would take too long for what sends the signal.
    assert (stopped.finished, stopped.step, len(stopped.history)) == (False, 5, 0)
    stopped = train(training(digits, tmp_path / "broken", resume=True), ALONE, stopping_at(10))
    assert (stopped.finished, stopped.step, len(stopped.history)) == (False, 10, 1)
    ended = train(training(digits, tmp_path / "broken", resume=True), ALONE)
    assert ended.finished
    assert ended.history == unbroken.history
    assert_same(weights_of(ended), weights_of(unbroken))
    # And one that is done is done.
    again = train(training(digits, tmp_path / "broken", resume=True), ALONE)
    assert (again.finished, again.step) == (True, 10)


def test_a_signal_that_comes_while_processes_agree_is_heeded(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreements = 0
    agree = Processes.sum

    def interrupted(self: Processes, *values: float) -> list[float]:
        nonlocal agreements
        found = agree(self, *values)
        agreements += 1
        if agreements == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(Processes, "sum", interrupted)
    stopped = train(training(digits, tmp_path / "run"), ALONE)
    assert not stopped.finished
    assert stopped.step <= 5
    assert read_checkpoint(stopped.checkpoint).step == stopped.step


@pytest.mark.slow
def test_a_batch_system_that_signals_all_processes_finds_a_checkpoint(
    digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["folder", "--data", digits, "--out", out, "--no-mixing-set", "--workers", "2",
                 "--model", "networks:classifier", "--epochs", "50", "--batch-size", "16",
                 "--precision", "float32", "--device", "cpu"]  # fmt: skip
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    log = tmp_path / "log"
    with log.open("w") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.train", *map(str, arguments)],
            env=environment, cwd=tests.parent, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(1200):
            if "loss" in log.read_text() or running.poll() is not None:
                break
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGTERM)
        # Nobody is to take it for the end.
        assert running.wait(timeout=120) == 143, log.read_text()
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert "stopped after step " in log.read_text()
    assert len(find_checkpoints(out)) >= 1


def test_ctrl_c_leaves_a_checkpoint_and_says_so(digits: Path, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(training(digits, tmp_path / "run"), ALONE, stopping_at(2, signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in find_checkpoints(tmp_path / "run")] == ["step-00000002.pt"]


def test_two_trainings_do_not_write_to_one_folder(digits: Path, tmp_path: Path) -> None:
    def begin_another(shown: StepProgress) -> None:
        if shown.step == 1:
            with pytest.raises(PipelineError, match="another training is writing to"):
                train(training(digits, tmp_path / "run"), ALONE)
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(training(digits, tmp_path / "run"), ALONE, begin_another).step == 1


def test_another_recipe_or_a_folder_in_use_is_refused(digits: Path, tmp_path: Path) -> None:
    train(training(digits, tmp_path / "run"), ALONE, stopping_at(1))
    with pytest.raises(PipelineError, match="holds a training; pass --resume auto"):
        train(training(digits, tmp_path / "run"), ALONE)
    with pytest.raises(PipelineError, match=r"seed: .* started with 0, this command has 1"):
        train(training(digits, tmp_path / "run", seed=1, resume=True), ALONE)
    with pytest.raises(PipelineError, match=r"shard_partitions is 1 and .* 2, .* --shard-p"):
        train(training(digits, tmp_path / "run", shard_partitions=2, resume=True), ALONE)


@pytest.mark.slow
def test_another_recipe_can_go_on_from_the_weights_in_another_folder(
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
    way_out = f"use 1, or fine-tune its weights in another --out, by --weights {checkpoint}\n"
    assert refused.stderr.endswith(way_out)
    # Which steps hardly change: the rate ends at 1e-6.
    more = ("--epochs", "2", "--weights", str(checkpoint), "--learning-rate", "0", "--seed", "7")
    assert trained("more", *more).exit_code == 0
    before, after = (
        torch.load(path, weights_only=True)["state_dict"]["fc.weight"]
        for path in (checkpoint, find_checkpoints(tmp_path / "more")[-1])
    )
    assert torch.allclose(before, after, rtol=0, atol=1e-3)
    drawn = open_model("wrn_10_1", 10, seed=7).fc.weight
    assert not torch.allclose(drawn, after, rtol=0, atol=1e-1)
    # Those of another network would not fit.
    refused = trained("run", "--epochs", "1", "--model", "wrn_10_2", "--resume", "auto")
    assert refused.stderr.endswith("; use wrn_10_1, or choose another --out\n")


@pytest.mark.slow
def test_training_lowers_the_loss_and_the_best_is_chosen_by_validation(
    digits: Path, tmp_path: Path
) -> None:
    shards, validation = hold_out(open_set(digits / "train", cache_dir=None, remote=None), 0.2)
    assert validation is not None
    assert len(shards.shards) + len(validation.shards) == 1438
    keys = {shards.key(i) for i in range(len(shards.shards))}
    assert not keys & {validation.key(i) for i in range(len(validation.shards))}
    trained = train(
        training(
            digits,
            tmp_path / "run",
            train=shards,
            validation=validation,
            epochs=6,
            batch_size=64,
            augment="none",
            dropout=0.0,
        ),
        ALONE,
    )
    losses = [record["train_loss"] for record in trained.history]
    assert losses[-1] < 0.8 * losses[0]
    errors = [record["validation_error"] for record in trained.history]
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    assert best.best == min(errors)
    assert best.step == trained.history[errors.index(min(errors))]["step"]
    # What is said of the test set is what the saved network gives.
    module, said = open_checkpoint(trained.checkpoint, None)
    assert (said["model"], said["classes"]) == ("wrn_10_1", 10)
    loss, error = loss_and_error(module, digits)
    assert error == pytest.approx(trained.history[-1]["test_error"], abs=1e-9)
    assert loss == pytest.approx(trained.history[-1]["test_loss"], rel=1e-5)
    # And it can be looked into.
    network = open_trained("wrn_10_1", trained.checkpoint, random_weights=False)
    assert torch.equal(network.module.fc.weight, module.fc.weight)


def test_a_batch_in_parts_of_unequal_size_trains_as_a_whole_one(
    digits: Path, tmp_path: Path
) -> None:
    # Without norms over the batch, in which a part differs from the whole. 250 in 4 parts are 63,
    # 63, 63 and 61.
    changes = {"model": "networks:linear", "batch_size": 250, "epochs": 1, "learning_rate": 0.5}
    parts, whole = (
        weights_of(train(training(digits, tmp_path / str(n), grad_accum_steps=n, **changes), ALONE))
        for n in (4, 1)
    )
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)
    first = open_model("networks:linear", 10, seed=0).state_dict()
    assert not torch.allclose(first["1.weight"], whole["1.weight"], atol=1e-3)


def test_a_loss_that_is_no_number_ends_it_and_names_the_samples(
    digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(PipelineError, match=r"the loss of step \d+ is (nan|inf); the samples"):
        train(training(digits, tmp_path / "run", learning_rate=1e30), ALONE)
    (path,) = (tmp_path / "run").glob("nonfinite-loss-*.json")
    said = json.loads(path.read_text())
    assert len(said["keys"]) == 256
    assert len(set(said["keys"])) == 256
    assert "?" not in said["keys"]


def test_a_loss_that_is_no_number_elsewhere_ends_it_here_too(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(_: Processes, *values: float) -> list[float]:
        return [values[0], values[1] + 1, *values[2:]] if len(values) == 5 else list(values)

    monkeypatch.setattr(Processes, "sum", elsewhere)
    with pytest.raises(PipelineError, match="NaN or infinite on another rank"):
        train(training(digits, tmp_path / "run"), ALONE)


# --- Processes -----------------------------------------------------------------------------------


def processes(
    folder: Path,
    out: Path | Sequence[Path],
    epochs: int,
    size: int,
    hosts: Sequence[str] | None = None,
    when: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """What several processes of a training say.

    out: of all, or of each; hosts: namespaces, one a process.
    """
    outs = [out] * size if isinstance(out, Path) else out
    port = str(free_port())
    tests = Path(__file__).parent
    started = [
        subprocess.Popen(
            [
                *([] if hosts is None else ["ip", "netns", "exec", hosts[rank]]),
                sys.executable, tests / "training_process.py", folder, outs[rank], str(epochs),
                *when,
            ],
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1" if hosts is None else ADDRESSES[0],
                "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": "lo" if hosts is None else f"pixmix-{rank}",
                "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    ends = [each.communicate(timeout=300) for each in started]
    assert [each.returncode for each in started] == [0] * size, ends
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]


@pytest.fixture
def hosts() -> Iterator[Sequence[str]]:
    """Two network namespaces with a cable between them."""
    with two_hosts() as names:
        yield names


@pytest.mark.slow
def test_two_processes_share_each_batch_and_end_alike(digits: Path, tmp_path: Path) -> None:
    first, second = processes(digits, tmp_path / "two", 2, 2)
    assert first["state"] == second["state"]
    assert first["history"] == second["history"]
    (alone,) = processes(digits, tmp_path / "one", 2, 1)
    assert len(alone["seen"]) == 10
    joined = [a + b for a, b in zip(first["seen"], second["seen"], strict=True)]
    assert joined == alone["seen"]
    newest = find_checkpoints(tmp_path / "two")[-1]
    assert read_checkpoint(newest).step == 10
    # What both said of the test set together is what the saved network gives.
    module, _ = open_checkpoint(newest, None)
    loss, error = loss_and_error(module, digits)
    assert error == pytest.approx(first["history"][-1]["test_error"], abs=1e-9)
    assert loss == pytest.approx(first["history"][-1]["test_loss"], rel=1e-6)


@pytest.mark.slow
def test_two_hosts_train_as_two_processes_of_one_do(
    digits: Path, tmp_path: Path, hosts: Sequence[str]
) -> None:
    apart = processes(digits, tmp_path / "apart", 1, 2, hosts)
    together = processes(digits, tmp_path / "together", 1, 2)
    assert apart == together


@pytest.mark.slow
@pytest.mark.parametrize(("when", "step"), [("show", 1), ("save", 6)])
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(
    digits: Path, tmp_path: Path, when: str, step: int
) -> None:
    first, second = processes(digits, tmp_path / "two", 2, 2, when=[when])
    assert (first["finished"], second["finished"]) == (False, False)
    assert first["step"] == second["step"] == step
    assert read_checkpoint(find_checkpoints(tmp_path / "two")[-1]).step == step


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's names of threads")
def test_no_thread_of_the_process_group_is_left_when_it_is_left(
    digits: Path, tmp_path: Path
) -> None:
    # One that meets an ended interpreter aborts the process.
    for said in processes(digits, tmp_path / "two", 1, 2):
        assert not [name for name in said["threads"] if "gloo" in name or "tcpstore" in name]


@pytest.mark.slow
def test_a_training_goes_on_at_another_world_size_with_the_same_order(
    digits: Path, tmp_path: Path
) -> None:
    (alone,) = processes(digits, tmp_path / "one", 2, 1)
    train(training(digits, tmp_path / "other"), ALONE, stopping_at(3))
    first, second = processes(digits, tmp_path / "other", 2, 2)
    joined = [a + b for a, b in zip(first["seen"], second["seen"], strict=True)]
    assert joined == alone["seen"][3:]
    assert first["finished"]


@pytest.mark.slow
def test_a_training_goes_on_from_the_newest_checkpoint_that_any_process_has(
    digits: Path, tmp_path: Path
) -> None:
    (alone,) = processes(digits, tmp_path / "one", 2, 1)
    for name, step in (("older", 1), ("newer", 3)):
        train(training(digits, tmp_path / name), ALONE, stopping_at(step))
    outs = tmp_path / "older", tmp_path / "newer"
    first, second = processes(digits, outs, 2, 2)
    joined = [a + b for a, b in zip(first["seen"], second["seen"], strict=True)]
    assert joined == alone["seen"][3:]
    assert first["state"] == second["state"]
    # The first process writes, in its own folder.
    assert [path.name for path in find_checkpoints(outs[0])][-1] == "step-00000010.pt"
    assert [path.name for path in find_checkpoints(outs[1])] == ["step-00000003.pt"]


# --- Networks ------------------------------------------------------------------------------------


def test_weights_to_begin_with_may_have_another_last_layer() -> None:
    module = open_model("wrn_10_2", 10, seed=1)
    other = open_model("wrn_10_2", 7, seed=2)
    left = initialize_from(module, other.state_dict())
    assert left == ["fc.weight", "fc.bias"]
    assert torch.equal(module.conv1.weight, other.conv1.weight)
    with pytest.raises(ValueError, match="tensors do not fit, such as"):
        initialize_from(module, open_model("wrn_10_3", 10).state_dict())
    with pytest.raises(ValueError, match=r"not in this network, such as block1\.layer\.1"):
        initialize_from(module, open_model("wrn_16_2", 10).state_dict())


def test_first_weights_follow_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, second = open_model("resnet18", 5, seed=3), open_model("resnet18", 5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(first.state_dict(), second.state_dict())
    other = open_model("resnet18", 5, seed=4)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("wrn_41_4", {}, r"depth is 41; give 6 n \+ 4"),
        ("resnet999", {}, "no network is named 'resnet999'"),
        ("wrn_10_1", {"pretrained": "IMAGENET1K_V1"}, "has no pretrained weights"),
        ("networks:nothing", {}, "networks:nothing gives no network"),
        ("networks:tiny", {}, "networks:tiny gives no network"),
    ],
)
def test_networks_that_are_none_are_refused(name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        open_model(name, 10, **more)


def test_a_network_of_ones_own_is_trained_and_opened_again(digits: Path, tmp_path: Path) -> None:
    trained = train(
        training(digits, tmp_path / "run", model="networks:classifier", epochs=1), ALONE
    )
    module, said = open_checkpoint(trained.checkpoint, "networks:classifier")
    assert isinstance(module, networks.Tiny)
    assert said["model"] == "networks:classifier"


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
def test_what_a_checkpoint_says_of_its_network_is_checked_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "from-elsewhere.pt"
    torch.save({"version": 2, "state_dict": {"fc.weight": torch.zeros(10, 3)}, "network": network},
               path)  # fmt: skip
    with pytest.raises(PipelineError) as refusal:
        open_checkpoint(path, None)
    assert message in str(refusal.value)
    assert sorted(tmp_path.iterdir()) == [path]


# --- The data ------------------------------------------------------------------------------------


def with_classes(shards: ShardSet, names: Sequence[str]) -> ShardSet:
    """The same images, of a set whose classes are named, and counted, in another order."""
    places = np.array([names.index(name) for name in shards.classes])
    samples = shards.samples.copy()
    samples["label"] = places[samples["label"]]
    return replace(shards, samples=samples, classes=tuple(names))


def test_a_test_set_is_judged_by_the_names_of_its_classes(digits: Path, tmp_path: Path) -> None:
    test = open_shards(digits / "test")
    backwards = with_classes(test, list(test.classes)[::-1])
    assert not np.array_equal(backwards.samples["label"], test.samples["label"])
    first, second = (
        train(training(digits, tmp_path / name, epochs=1, test=each), ALONE).history
        for name, each in (("usual", test), ("backwards", backwards))
    )
    assert first == second
    more = replace(test, classes=(*test.classes[:-1], "another"))
    with pytest.raises(PipelineError, match="has a class 'another'"):
        train(training(digits, tmp_path / "more", test=more), ALONE)


def test_a_test_set_without_names_has_no_more_classes_than_are_trained(digits: Path) -> None:
    test = open_shards(digits / "test")
    nameless = replace(test, classes=())
    assert outputs_for(nameless, test.classes, 10) is None
    with pytest.raises(PipelineError, match="has 10 classes and the training set 9"):
        outputs_for(nameless, test.classes[:9], 9)
    samples = test.samples.copy()
    samples["label"] = -1
    with pytest.raises(PipelineError, match="has images without a class"):
        outputs_for(replace(test, samples=samples), test.classes, 10)


def test_shards_of_another_set_or_without_classes_are_refused(digits: Path, tmp_path: Path) -> None:
    def nothing(_done: int, _total: int) -> None: ...

    with pytest.raises(PipelineError, match="is digits and not cifar10"):
        open_training_data("cifar10", digits, tmp_path, nothing)
    assert open_training_data("folder", digits, tmp_path, nothing).test is not None
    from PIL import Image

    from pipelines.cli.shard import main as shard

    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "images" / "0.png")
    made = ["mixing", str(tmp_path / "images"), str(tmp_path / "mixing"), "--jobs", "1"]
    assert CliRunner().invoke(shard, made).exit_code == 0
    with pytest.raises(PipelineError, match="has images without a class, as a mixing set has"):
        open_training_data("folder", tmp_path / "mixing", tmp_path, nothing)


# --- The command ---------------------------------------------------------------------------------


def test_the_choices_are_those_of_the_library() -> None:
    assert training_options.ON_DECODE_ERROR == ON_DECODE_ERROR
    assert set(AUGMENTATIONS) == set(AUGMENTS) - {"none", "pixmix"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_help_of_a_command_has_the_numbers_of_its_recipe(dataset: str) -> None:
    recipe = recipe_of(dataset, "--no-mixing-set")
    text = " ".join(run(dataset, "--help").stdout.split())
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
        assert f"[default: {value}]" in text.partition(f" --{name} ")[2].partition(" --")[0], name


def test_data_that_lie_one_level_down_are_named(digits: Path, tmp_path: Path) -> None:
    def nothing(_done: int, _total: int) -> None: ...

    for name in ("digits", "folder"):
        shutil.copytree(digits, tmp_path / "shards" / name)
    shards = tmp_path / "shards"
    for dataset in ("digits", "folder"):
        with pytest.raises(PipelineError) as caught:
            open_training_data(dataset, shards, tmp_path / "made", nothing)  # type: ignore[arg-type]
        assert f"has no train/manifest.json, and {shards / dataset} has; give --data" in str(
            caught.value
        )
    # Of two that have other names neither is meant.
    with pytest.raises(PipelineError, match="make shards of your images first"):
        open_training_data("imagenet", shards, tmp_path / "made", nothing)
    with pytest.raises(PipelineError, match="cifar-10-python"):
        open_training_data("cifar10", shards, tmp_path / "made", nothing)
    shutil.move(shards / "folder", shards / "cifar10")
    with pytest.raises(PipelineError, match="/shards/cifar10 has; give --data"):
        open_training_data("cifar10", shards, tmp_path / "made", nothing)
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_making_data_shows_a_bar_of_samples_for_each_split(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = run(
        "digits", "--out", str(tmp_path / "run"), "--batch-size", "5000", "--no-mixing-set"
    )
    assert result.exit_code == 1
    ends = re.findall(r"([\d,]+) of ([\d,]+) samples", result.stderr)
    assert [done for done, total in ends if done == total] == ["1,438", "359"]


def test_the_command_trains_and_tells(digits: Path, tmp_path: Path) -> None:
    arguments = ("digits", "--data", str(digits), "--out", str(tmp_path / "run"), "--epochs", "1",
                 "--batch-size", "256", "--precision", "float32", "--no-mixing-set")  # fmt: skip
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["finished"], said["step"]) == (True, 5)
    assert said["history"][0]["test_error"] < 1
    assert Path(said["checkpoint"]).exists()
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "--resume auto" in refused.stderr
    assert run(*arguments, "--resume", "auto").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifar10", "--no-mixing-set"), "name its folder with --data"),
        (("cifar10", "--data", "empty", "--no-mixing-set"), "cifar-10-python.tar.gz"),
        (("folder", "--data", "empty", "--no-mixing-set"), "make shards of your images first"),
        (("digits", "--data", "empty"), "leave --data out, and they are made"),
        (("digits", "--model", "resnet999"), "no network is named 'resnet999'"),
        (("digits", "--batch-size", "5000"), "make no batch of 5000"),
        (
            ("digits", "--batch-size", "64", "--shard-partitions", "7"),
            "equally many samples of each of 7 shard_partitions",
        ),
        (("digits", "--device", "gpu"), "device 'gpu' is not available"),
        (("digits", "--device", "cpu", "--sync-bn"), "--sync-bn needs GPUs"),
        (("digits", "--val-fraction", "0.5", "--data", "one"), "make it again with"),
        (("digits", "--out", "file/run"), "file"),
        (("digits", "--model", "wrn_16_0"), "no network is named 'wrn_16_0'"),
        (("digits", "--model", "resnext29_0x4"), "no network is named 'resnext29_0x4'"),
    ],
)
def test_what_cannot_be_trained_ends_with_one_line(
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
def test_wrong_usage_is_told_and_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, "--out", "run")
    assert result.exit_code == 2, result.output
    assert "Error: " in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["mixing set", "images to mix with", "folder of results"])
def test_what_is_missing_is_found_before_anything_is_made(
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


def test_images_are_cut_to_the_size_that_is_asked_for(tmp_path: Path) -> None:
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


def test_training_takes_a_mixing_set(digits: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(3):
        image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
    finished = []
    for name, more in (("with", {"mixing_set": tmp_path / "images"}), ("without", {})):
        finished.append(train(training(digits, tmp_path / name, epochs=1, **more), ALONE))
    first, second = (weights_of(each) for each in finished)
    assert not torch.equal(first["fc.weight"], second["fc.weight"])
    with pytest.raises(PipelineError, match="started with another mixing set, or with none"):
        train(training(digits, tmp_path / "with", resume=True, epochs=1), ALONE)
    mixing_set = tmp_path / "images"
    again = training(digits, tmp_path / "with", resume=True, epochs=1, mixing_set=mixing_set)
    assert train(again, ALONE).finished


def test_the_command_passes_over_what_cannot_be_read_where_it_is_told_to(tmp_path: Path) -> None:
    contents = [encoded(image) for image in drawn_images(20)]
    for name, bad in (("train", (3, 8)), ("test", (5,))):
        damaged = [content[:50] if i in bad else content for i, content in enumerate(contents)]
        write_shards(tmp_path / "data" / name, damaged, sizes=(20,))
    (tmp_path / "mixing").mkdir()
    for i, content in enumerate([*contents[:3], b"no image at all"]):
        (tmp_path / "mixing" / f"{i}.png").write_bytes(content)

    def told(name: str, *more: str) -> Result:
        return run(
            "folder", "--data", f"{tmp_path}/data", "--mixing-set", f"{tmp_path}/mixing",
            "--out", f"{tmp_path}/{name}", "--cache-dir", f"{tmp_path}/cache", "--epochs", "1",
            "--model", "networks:classifier", "--batch-size", "20", "--workers", "0",
            "--precision", "float32", "--device", "cpu", "--json", *more,
        )  # fmt: skip

    refused = told("run")
    assert refused.exit_code == 1
    assert "3.png" in refused.stderr
    assert "pixmix-train: --on-mixing-decode-error skip" in refused.stderr
    refused = told("run", "--on-mixing-decode-error", "skip")
    assert refused.exit_code == 1
    assert "pixmix-train: --on-decode-error" in refused.stderr
    refused = told("few", "--on-mixing-decode-error", "skip", "--on-decode-error", "skip",
                   "--max-decode-errors", "1")  # fmt: skip
    assert refused.exit_code == 1
    assert "more than the 1 of max_decode_errors (pixmix-train: --max-decode" in refused.stderr
    for policy in ("substitute", "skip"):
        # Also where a training was begun that ended so.
        done = told("run" if policy == "skip" else policy, "--on-mixing-decode-error", "skip",
                    "--on-decode-error", policy, "--resume", "auto")  # fmt: skip
        assert done.exit_code == 0, done.output
        (record,) = json.loads(done.stdout)["history"]
        # Of 18 images, or of 20; and of 19 that are tested.
        for split, n in (("train", 18 if policy == "skip" else 20), ("test", 19)):
            wrong = record[f"{split}_error"] * n
            assert wrong == pytest.approx(round(wrong)), (split, policy)


@pytest.mark.parametrize(("sharing", "workers"), [(0, 4), (1, 3), (3, 1), (9, 1)])
def test_there_are_no_more_workers_than_cores_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharing: int, workers: int
) -> None:
    write_shards(tmp_path / "data", [b"no image"] * 4, sizes=(4,))
    # Other processes that have the same seven cores, and some that have others.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    monkeypatch.setattr(Processes, "gather", lambda _, own: [own] * (1 + sharing) + [own + 1] * 5)
    given_workers = []

    def found(training: TrainConfig, *_: object) -> TrainResult:
        given_workers.append(training.loader.num_workers)
        raise PipelineError("it is known")

    monkeypatch.setattr("pipelines.training.loop.train", found)
    arguments = ("folder", "--data", f"{tmp_path}/data", "--no-mixing-set", "--device", "cpu",
                 "--out", f"{tmp_path}/run")  # fmt: skip
    for more in ((), ("--workers", "9")):
        assert "it is known" in run(*arguments, *more).stderr
    assert given_workers == [workers, 9]


def test_a_batch_of_which_nothing_can_be_read_ends_training(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", [b"no image"] * 4, sizes=(4,))
    ended = run(
        "folder", "--data", f"{tmp_path}/data", "--no-mixing-set", "--out", f"{tmp_path}/run",
        "--model", "networks:classifier", "--batch-size", "4", "--workers", "0", "--device", "cpu",
        "--precision", "float32", "--on-decode-error", "skip",
    )  # fmt: skip
    assert ended.exit_code == 1
    assert "no sample of this process's part of step 0 can be read" in ended.stderr


def test_tensorboard_gets_each_epochs_numbers_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (5, 10):
        log_to_tensorboard(tmp_path, {"epoch": step // 5, "step": step, "train_loss": 1 / step})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train_loss"]
    seen = [(each.step, round(each.value, 6)) for each in events.Scalars("train_loss")]
    assert seen == [(5, 0.2), (10, 0.1)]
