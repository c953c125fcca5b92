import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional

from pipelines.cli import evaluate as command
from pipelines.errors import PipelineError
from pipelines.evaluation.answers import Answers, Classifier, as_images
from pipelines.evaluation.attacks import pgd
from pipelines.evaluation.corrupted import CIFAR_BAR, CORRUPTIONS
from pipelines.evaluation.data import find_data
from pipelines.evaluation.make_corrupted import make_corrupted
from pipelines.evaluation.metrics import (
    calibration_error,
    tempered_confidence,
    tune_temperature,
)
from pipelines.evaluation.outliers import blobs, gaussian, rademacher
from pipelines.evaluation.perturbed import CIFAR_PERTURBATIONS
from pipelines.evaluation.pictures import Stored
from pipelines.evaluation.request import Data, Evaluation, TestSet
from pipelines.evaluation.suites import OF_ANY, SUITES, evaluate
from pipelines.loading.mixing_set import open_images
from pipelines.models.opening import open_model
from pipelines.report.headlines import table
from pipelines.report.radar import radar
from pipelines.report.short_names import names_of
from pipelines.shards.index import open_shards
from pipelines.system.files import file_sha256
from pipelines.system.process_group import Processes
from pipelines.system.ranks import World
from pipelines.training.checkpoints import save_checkpoint

PERTURBATIONS = (*CIFAR_PERTURBATIONS, "spatter")

ALONE = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))
N = 12


class Brightness(nn.Module):
    """Tells dark, middling and bright pictures apart, as sure as they are so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([-8 * mean, -3 * (mean - 0.0) ** 2, 8 * mean], 1)


def classifier(batch_size: int = 5) -> Classifier:
    return Classifier(
        module=Brightness().eval(), mean=(0.5,) * 3, std=(0.5,) * 3, processes=ALONE,
        batch_size=batch_size,
    )  # fmt: skip


def pictures_of(n: int = N, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    base = np.array([30, 128, 220])[labels][:, None, None, None]
    pictures = (base + rng.integers(-25, 26, (n, side, side, 3))).astype(np.uint8)
    return pictures, labels.astype(np.int64)


PICTURES, LABELS = pictures_of()


def data_of(root: Path, pictures: np.ndarray = PICTURES, labels: np.ndarray = LABELS) -> Data:
    test = TestSet(pictures=Stored(pictures), labels=labels)
    return Data(root=root, name="TINY", side=pictures.shape[1], view=None, test=test)


def evaluation(root: Path, **changes: Any) -> Evaluation:  # noqa: ANN401
    return replace(Evaluation(classifier=classifier(), data=data_of(root)), **changes)


def write_corrupted(folder: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Write sets that become darker with each severity, some more than others."""
    folder.mkdir(parents=True)
    written = {}
    for place, name in enumerate(names):
        severities = [
            (PICTURES * (1 - 0.1 * severity * (1 + place % 3) / 3)).astype(np.uint8)
            for severity in range(1, 6)
        ]
        written[name] = np.concatenate(severities)
        np.save(folder / f"{name}.npy", written[name])
    np.save(folder / "labels.npy", np.tile(LABELS, 5))
    return written


def plain_answers(pictures: np.ndarray) -> Answers:
    """Answers one by one."""
    images = as_images(pictures, torch.device("cpu"))
    soft = torch.stack([classifier().logits(each[None])[0] for each in images]).softmax(1)
    return Answers(predicted=soft.argmax(1).numpy(), confidence=soft.max(1).values.numpy())


# --- Answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_answers_do_not_depend_on_the_batch(batch_size: int) -> None:
    asked: list[range] = []

    class Asked(Stored):
        def read(self, numbers: Sequence[int]) -> np.ndarray:
            assert isinstance(numbers, range)
            asked.append(numbers)
            return super().read(numbers)

    found = classifier(batch_size).answer(Asked(PICTURES))
    expected = plain_answers(PICTURES)
    np.testing.assert_array_equal(found.predicted, expected.predicted)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-5)
    assert max(map(len, asked)) == min(batch_size, N)
    assert [number for numbers in asked for number in numbers] == list(range(N))


def test_each_process_answers_its_own_and_all_know_all(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = classifier().answer(Stored(PICTURES))
    parts: dict[int, Answers] = {}

    def gather(out: list[Answers], mine: Answers) -> None:
        parts[rank] = mine
        out[:] = [parts.get(each, mine) for each in range(5)]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank in range(5):
        apart = replace(
            classifier(), processes=Processes(world=World(rank=rank, size=5), device=ALONE.device)
        )
        found = apart.answer(Stored(PICTURES))
    np.testing.assert_array_equal(found.predicted, whole.predicted)
    np.testing.assert_allclose(found.confidence, whole.confidence, rtol=1e-6)
    assert sum(len(each.predicted) for each in parts.values()) == N


# --- Suites --------------------------------------------------------------------------------------


def test_corruption_errors_are_means_over_corruptions_and_severities(tmp_path: Path) -> None:
    written = write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    found = evaluate(evaluation(tmp_path), ["c"]).values["c"]
    errors, rms = [], []
    for name, pictures in written.items():
        answers = plain_answers(pictures)
        wrong = (answers.predicted != np.tile(LABELS, 5)).reshape(5, N).mean(1)
        assert found["errors"][name] == pytest.approx(list(wrong))
        errors.append(wrong.mean())
        rms.append(calibration_error(answers.confidence, answers.predicted == np.tile(LABELS, 5)))
    assert found["mean_error"] == pytest.approx(np.mean(errors))
    assert found["mean_rms"] == pytest.approx(np.mean(rms), rel=1e-4)
    assert len({round(each, 6) for each in errors}) > 1


def test_flips_in_noise_are_from_the_first_frame(tmp_path: Path) -> None:
    folder = tmp_path / "TINY-P"
    folder.mkdir()
    dark, bright = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    frames = np.stack([dark, bright, bright, bright])
    for name in PERTURBATIONS:
        np.save(folder / f"{name}.npy", np.stack([frames, np.stack([dark] * 4)]))
    found = evaluate(evaluation(tmp_path), ["p"]).values["p"]
    assert len(found["flips"]) == 10
    for name, value in found["flips"].items():
        assert value == pytest.approx(3 / 6 if "noise" in name else 1 / 6), name
    assert found["mean_flip_probability"] == pytest.approx((2 * 3 / 6 + 8 / 6) / 10)


def test_suites_without_data_are_named_and_the_others_run(tmp_path: Path) -> None:
    found = evaluate(evaluation(tmp_path))
    assert set(found.values) == {"clean", "calibration", "adversarial", "anomaly"}
    assert set(found.missing) == {"c", "c-bar", "p"}
    assert all("\n" not in line for line in found.missing.values())
    write_corrupted(tmp_path / "TINY-C-Bar", CIFAR_BAR[:-1])
    found = evaluate(evaluation(tmp_path), ["c-bar"])
    assert "has no transverse_chromatic_abberation.npy (1 of 10" in found.missing["c-bar"]


@pytest.mark.parametrize(
    ("name", "suite", "remedy"),
    [
        ("CIFAR-10", "c", "get it from https://zenodo.org/record/2535967, or make one by"),
        ("CIFAR-100", "c", "get it from https://zenodo.org/record/3555552, or make one by"),
        ("CIFAR-10", "p", "get it from https://zenodo.org/record/2535967"),
        ("CIFAR-10", "c-bar", "get it from https://github.com/facebookresearch/"),
        ("DIGITS", "c", "is not there; make one by pixmix-eval make-c"),
        ("DIGITS", "c-bar", "is not there; nobody distributes one of DIGITS; leave the suite out"),
        ("DIGITS", "p", "is not there; nobody distributes one of DIGITS; leave the suite out"),
    ],
)
def test_a_missing_set_is_to_be_got_where_there_is_one(
    tmp_path: Path, name: str, suite: str, remedy: str
) -> None:
    asked = evaluation(tmp_path, data=replace(data_of(tmp_path), name=name))
    why = evaluate(asked, [suite]).missing[suite]
    assert remedy in why
    assert "zenodo" not in why or "zenodo" in remedy


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_not_finite_are_refused_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    class Spoilt(Brightness):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = super().forward(x)
            found[:, 0] = torch.where(x.mean((1, 2, 3)) > 0.5, value, found[:, 0])
            return found

    spoilt = replace(classifier(), module=Spoilt().eval())
    found = evaluate(evaluation(tmp_path, classifier=spoilt), ["clean", "calibration"])
    bad = int((PICTURES.mean((1, 2, 3)) > 0.75 * 255).sum())
    assert 0 < bad < N
    assert found.values == {}
    assert len(set(found.failed.values())) == 1
    assert f"NaN or infinite for {bad} of {N} pictures; look" in found.failed["clean"]
    # The bad part is another process's.
    other = classifier().answer(Stored(PICTURES))
    nan = replace(other, confidence=np.full(N, np.nan, np.float32))
    monkeypatch.setattr(Classifier, "gather", lambda _self, mine: [mine, nan])
    with pytest.raises(PipelineError, match=f"infinite for {N} of {2 * N} pictures"):
        classifier().answer(Stored(PICTURES))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: np.save(f / "labels.npy", np.zeros(7, int)),
            "as many labels for each of 5",
        ),
        (lambda f: (f / "labels.npy").unlink(), "has no labels.npy"),
        (lambda f: np.save(f / "fog.npy", np.zeros((60, 8, 8, 3))), "should hold uint8 pictures"),
        (
            lambda f: np.save(f / "fog.npy", np.zeros((60, 9, 9, 3), np.uint8)),
            "should hold uint8 pictures of 8x8x3",
        ),
        (lambda f: np.save(f / "fog.npy", np.zeros((3, 8, 8, 3), np.uint8)), "3 pictures for 60"),
        (lambda f: (f / "fog.npy").write_bytes(b"junk"), "is no whole array"),
        (lambda f: (f / "fog.npy").write_bytes(b""), "is no whole array"),
        (lambda f: (f / "labels.npy").write_bytes(b""), "is no whole array"),
        (
            lambda f: np.save(f / "fog.npy", np.array([{}]), allow_pickle=True),
            "is no whole array",
        ),
    ],
)
def test_data_that_are_not_what_they_should_be_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    spoil(tmp_path / "TINY-C")
    found = evaluate(evaluation(tmp_path), ["c", "clean"])
    assert message in found.failed["c"]
    assert str(tmp_path) in found.failed["c"]
    assert set(found.values) == {"clean"}


def test_damaged_data_end_all_of_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    (tmp_path / "TINY-C" / "labels.npy").unlink()
    asked = evaluation(tmp_path)
    two = replace(asked.classifier.processes, world=World(rank=0, size=2))
    monkeypatch.setattr(Processes, "sum", lambda _self, *values: [2 * each for each in values])
    with pytest.raises(PipelineError, match=r"has no labels\.npy"):
        evaluate(replace(asked, classifier=replace(asked.classifier, processes=two)), ["c"])


def test_the_labels_of_a_set_count_in_its_own_names(tmp_path: Path) -> None:
    write_corrupted(tmp_path / "TINY-C", CORRUPTIONS)
    names = [f"class {place}" for place in range(10)]
    expected = evaluate(evaluation(tmp_path), ["c"]).values["c"]
    asked = evaluation(tmp_path)
    asked = replace(asked, data=replace(asked.data, classes=tuple(names)))
    assert evaluate(asked, ["c"]).values["c"] == expected
    # The same pictures, counted backwards.
    labels = np.load(tmp_path / "TINY-C" / "labels.npy")
    np.save(tmp_path / "TINY-C" / "labels.npy", 9 - labels)
    (tmp_path / "TINY-C" / "classes.txt").write_text("\n".join(names[::-1]) + "\n")
    assert evaluate(asked, ["c"]).values["c"] == expected
    # Names that no label has do not count.
    others = ["another", *names[-2::-1]]
    (tmp_path / "TINY-C" / "classes.txt").write_text("\n".join(others))
    assert evaluate(asked, ["c"]).values["c"] == expected
    (tmp_path / "TINY-C" / "classes.txt").write_text("another\n" * 10)
    assert "has a class 'another'" in evaluate(asked, ["c"]).failed["c"]
    (tmp_path / "TINY-C" / "classes.txt").write_text("class 0\nclass 1\n")
    assert "has labels from" in evaluate(asked, ["c"]).failed["c"]


def test_sequences_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "TINY-P").mkdir()
    for name in PERTURBATIONS:
        (tmp_path / "TINY-P" / f"{name}.npy").write_bytes(b"junk")
    assert "is no whole array" in evaluate(evaluation(tmp_path), ["p"]).failed["p"]


def test_an_unknown_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no suite is named 'x'; give of clean"):
        evaluate(evaluation(tmp_path), ["clean", "x"])


def test_an_attack_on_some_images_is_that_on_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(_classify: object, images: torch.Tensor, labels: torch.Tensor, **how: Any) -> Any:  # noqa: ANN401
        seen.append((labels, how["start"]))
        return images

    monkeypatch.setattr("pipelines.evaluation.suites.pgd", remember)
    whole = evaluation(tmp_path, classifier=classifier(12))
    evaluate(whole, ["adversarial"])
    found = evaluate(replace(whole, adversarial_images=5), ["adversarial"]).values
    (labels, starts), (some_labels, some_starts) = seen
    chosen = [0, 2, 4, 7, 9]
    torch.testing.assert_close(some_labels, labels[chosen], rtol=0, atol=0)
    torch.testing.assert_close(some_starts, starts[chosen], rtol=0, atol=0)
    assert (found["adversarial"]["images"], found["adversarial"]["of_images"]) == (5, 12)
    assert "5 of 12 images" in table({"a network": found}, {})


def test_evaluation_does_not_depend_on_the_batch_nor_leave_a_trace(tmp_path: Path) -> None:
    state = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    before = PICTURES.copy()
    first, second = (
        evaluate(evaluation(tmp_path, classifier=classifier(size)), OF_ANY).values
        for size in (3, 12)
    )
    assert first["adversarial"] == second["adversarial"]
    assert first["anomaly"]["kinds"]["blobs"] == pytest.approx(second["anomaly"]["kinds"]["blobs"])
    np.testing.assert_array_equal(PICTURES, before)
    assert np.random.get_state()[1].tolist() == state[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[1])


def test_each_half_is_tempered_by_what_the_other_half_wants(tmp_path: Path) -> None:
    found = evaluate(evaluation(tmp_path), ["calibration"]).values["calibration"]
    logits = classifier().logits(as_images(PICTURES, ALONE.device)).numpy()
    of_even, of_odd = (tune_temperature(logits[k::2], LABELS[k::2]) for k in range(2))
    assert found["temperature"] == pytest.approx((of_even + of_odd) / 2)
    confidence = np.empty(N, np.float32)
    confidence[::2] = tempered_confidence(logits[::2], of_odd)
    confidence[1::2] = tempered_confidence(logits[1::2], of_even)
    right = logits.argmax(1) == LABELS
    assert found["rms_tempered"] == pytest.approx(calibration_error(confidence, right))


# --- Attacks -------------------------------------------------------------------------------------


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 4))


@pytest.mark.parametrize("quirk", [False, True])
def test_an_adversary_never_goes_further_than_epsilon(quirk: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(9, 3, 6, 6, generator=generator)
    images[0], images[1] = 0, 1
    start = torch.rand(images.shape, generator=generator)
    labels = torch.arange(9) % 4
    module = linear()
    before = images.clone()
    attacked = pgd(module, images, labels, start=start, reference_quirk=quirk)
    assert torch.equal(images, before)
    distance = (attacked - images).abs().max().item()
    assert float(attacked.min()) >= 0
    assert float(attacked.max()) <= 1
    # The released code's box lies round the random start: it goes further.
    assert (distance > 2.2 / 255) if quirk else (distance <= 2 / 255 + 1e-6)
    with torch.no_grad():
        losses = [functional.cross_entropy(module(each), labels) for each in (attacked, images)]
    assert float(losses[0]) > float(losses[1])


def test_the_quirk_is_the_released_codes_step_by_step() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(9, 3, 6, 6, generator=generator)
    images[0], images[1] = 0, 1  # where the start that is not cut to 0..1 shows
    start = torch.rand(images.shape, generator=generator)
    labels = torch.arange(9) % 4
    module = linear()
    # There the picture and the start share their memory, and so the box moves with the noise.
    noised = images + 2 / 255 * (2 * start - 1)
    attacked = noised
    for _ in range(20):
        attacked = attacked.detach().requires_grad_()
        loss = functional.cross_entropy(module(attacked), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        attacked = attacked.detach() + 0.5 / 255 * gradient.sign()
        attacked = torch.min(torch.max(attacked, noised - 2 / 255), noised + 2 / 255).clamp(0, 1)
    found = pgd(module, images, labels, start=start, reference_quirk=True)
    torch.testing.assert_close(found, attacked, atol=1e-7, rtol=0)


def test_for_a_linear_network_the_adversary_finds_the_corner_of_the_box() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    images = torch.full((1, 3, 2, 2), 0.5)
    weight = module[1].weight
    attacked = pgd(module, images, torch.tensor([0]), start=torch.full_like(images, 0.5))
    worse = (weight[1] - weight[0]).sign().view(1, 3, 2, 2)
    torch.testing.assert_close(attacked, images + 2 / 255 * worse, atol=1e-6, rtol=0)


# --- Outliers ------------------------------------------------------------------------------------


def test_outliers_are_what_their_names_say() -> None:
    generator = np.random.default_rng(0)
    noise = gaussian(generator, 50, 32)
    assert noise.shape == (50, 32, 32, 3)
    inner = noise[(noise > 0) & (noise < 1)]
    assert noise.mean() == pytest.approx(0.5, abs=0.005)
    # Beyond two deviations it is cut.
    assert 1 - inner.size / noise.size == pytest.approx(0.0455, abs=0.003)
    signs = rademacher(generator, 50, 32)
    assert set(np.unique(signs)) == {0.0, 1.0}
    assert signs.mean() == pytest.approx(0.5, abs=0.01)


def test_blobs_are_blurred_noise_without_its_faint_parts() -> None:
    made = blobs(np.random.default_rng(3), 4, 32)
    noise = (np.random.default_rng(3).random((4, 32, 32, 3)) < 0.7).astype(float)
    expected = np.stack([gaussian_filter(each, 1.5, mode="nearest") for each in noise])
    # Not where rounding decides on which side of the limit a value lies.
    near = np.abs(expected - 0.75) < 1e-6
    expected[expected < 0.75] = 0
    np.testing.assert_allclose(made[~near], expected[~near], atol=1e-6)
    assert 0.1 < (made > 0).mean() < 0.9


# --- Making corrupted sets -----------------------------------------------------------------------


def test_a_corrupted_set_is_made_continued_and_the_same_again(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    pictures, labels = pictures_of(3, 32)
    test = data_of(tmp_path, pictures, labels)
    names = ("gaussian_noise", "fog", "contrast")
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    folder = make_corrupted(test, tmp_path, names=names)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    assert folder == tmp_path / "TINY-C-made"
    made = {name: np.load(folder / f"{name}.npy") for name in names}
    assert all(each.shape == (15, 32, 32, 3) for each in made.values())
    np.testing.assert_array_equal(np.load(folder / "labels.npy"), np.tile(labels, 5))
    noise = made["gaussian_noise"].reshape(5, 3, 32, 32, 3).astype(float)
    strength = [np.abs(each - pictures).mean() for each in noise]
    assert strength == sorted(strength)
    (folder / "fog.npy").unlink()
    make_corrupted(test, tmp_path, names=names)
    np.testing.assert_array_equal(np.load(folder / "fog.npy"), made["fog"])
    # A picture does not depend on how many others there are.
    alone = make_corrupted(test, tmp_path / "few", n=2, names=names[:1])
    few = np.load(alone / "gaussian_noise.npy").reshape(5, 2, 32, 32, 3)
    np.testing.assert_array_equal(few, noise[:, :2])
    for change, message in (
        ({"n": 2}, "was made with n 3, and this is 2"),
        ({"seed": 1}, "was made with seed 0, and this is 1"),
    ):
        with pytest.raises(PipelineError, match=message):
            make_corrupted(test, tmp_path, names=names, **change)
    others = data_of(tmp_path, pictures[::-1].copy(), labels)
    with pytest.raises(PipelineError, match="was made with images "):
        make_corrupted(others, tmp_path, names=names)
    np.save(folder / "fog.npy", made["fog"][:3])
    make_corrupted(test, tmp_path, names=names)
    np.testing.assert_array_equal(np.load(folder / "fog.npy"), made["fog"])


def test_a_set_of_others_is_not_written_into(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    write_corrupted(tmp_path / "TINY-C-made", CORRUPTIONS)
    before = sorted((tmp_path / "TINY-C-made").glob("*"))
    with pytest.raises(PipelineError, match="was not made by this command"):
        make_corrupted(data_of(tmp_path, *pictures_of(3, 32)), tmp_path)
    assert sorted((tmp_path / "TINY-C-made").glob("[!.]*")) == before


def test_a_made_set_says_the_names_of_its_classes(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    pictures, labels = pictures_of(3, 32)
    test = replace(data_of(tmp_path, pictures, labels), classes=("a", "b"))
    folder = make_corrupted(test, tmp_path, names=("contrast",))
    assert (folder / "classes.txt").read_text() == "a\nb\n"


# --- Report and command --------------------------------------------------------------------------

FOUND = {
    "clean": {"error": 0.05},
    "calibration": {"rms": 0.02},
    "anomaly": {"mean_auroc": 0.9, "mean_aupr": 0.7, "mean_fpr95": 0.2, "kinds": {"blobs": {}}},
}


def test_the_table_shows_networks_side_by_side_and_what_is_left_out() -> None:
    shown = table({"ours.pt": FOUND, "theirs.pt": {"clean": {"error": 0.5}}}, {"p": "no data"})
    lines = shown.splitlines()
    assert lines[0].split() == ["ours.pt", "theirs.pt"]
    assert any(line.split() == ["clean", "error", "5.00", "%", "50.00", "%"] for line in lines)
    assert any(line.startswith("RMS calibration error") and line.endswith("-") for line in lines)
    assert lines[-1] == "left out: p: no data"
    assert names_of([Path("a/best.pt"), Path("b/best.pt")]) == ["a/best.pt", "b/best.pt"]


def test_names_are_of_where_paths_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert names_of([Path()]) == ["b"]
    assert names_of([Path(), Path("..")]) == ["b", "a"]


def test_a_radar_plot_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    from pipelines.generate.encoding import decode

    assert decode(radar({"ours": FOUND, "theirs": FOUND})).std() > 1
    with pytest.raises(PipelineError, match="1 measures make no radar plot"):
        radar({"ours": {"clean": {"error": 0.1}}})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    from pipelines.training.data import find_data

    folder = tmp_path_factory.mktemp("digits")
    find_data("digits", None, folder, lambda _done, _total: None)
    return folder


def checkpoint(folder: Path, classes: int = 10) -> Path:
    module = open_model("wrn_10_1", classes)
    path = folder / f"{classes}.pt"
    network = {"model": "wrn_10_1", "classes": classes, "mean": [0.5] * 3, "std": [0.5] * 3}
    save_checkpoint(path, {"network": network, "state_dict": module.state_dict()})
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, arguments)


def test_the_suites_are_those_of_the_library() -> None:
    assert command.SUITES == SUITES


def test_the_command_evaluates_and_tells(digits: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    arguments = ("run", "--checkpoint", str(path), "--data", str(digits))
    result = run(*arguments, "--suite", "clean,calibration,anomaly", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["test"] == "DIGITS"
    (found,) = said["networks"].values()
    assert found["clean"]["n"] == 359
    assert 0.5 < found["clean"]["error"] <= 1
    assert said["missing"] == {}
    text = run(*arguments[1:], "--suite", "clean", "--against", str(path))
    assert text.exit_code == 0, text.output
    assert "clean error" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--checkpoint", "3.pt"),
            "has 10 numbered classes, of which 7 ('3', '4', '5' and 4 more) are not within",
        ),
        (("--checkpoint", "bare.pt"), "does not say what network it is of; name it with --model"),
        (("--checkpoint", "bare.pt", "--model", "resnet18"), "does not fit ResNet"),
        (("--checkpoint", "junk.pt"), "neither a file of torch.save nor of safetensors"),
        (("--checkpoint", "10.pt", "--data", "empty"), "has no test/manifest.json"),
    ],
)
def test_what_cannot_be_evaluated_ends_with_one_line(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for classes in (3, 10):
        checkpoint(tmp_path, classes)
    torch.save(open_model("wrn_10_1", 10).state_dict(), "bare.pt")
    Path("junk.pt").write_text("junk")
    more = () if "--data" in arguments else ("--data", str(digits))
    result = run("run", *arguments, *more, "--suite", "clean")
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert result.stderr.count("Error: ") == 1


def test_folders_of_small_pictures_are_seen_as_their_shards_are(
    digits: Path, tmp_path: Path
) -> None:
    test = open_shards(digits / "test")
    pictures = open_images(test, cache_dir=tmp_path / "cache")
    for i in range(len(test)):
        folder = tmp_path / "folders" / "test" / test.classes[int(test.samples["label"][i])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[i]).save(folder / f"{i}.png")
    path = checkpoint(tmp_path)
    found = []
    for root in (digits, tmp_path / "folders"):
        result = run("--checkpoint", str(path), "--data", str(root), "--suite", "clean", "--json")
        assert result.exit_code == 0, result.output
        found += json.loads(result.stdout)["networks"].values()
    assert found[0] == found[1]
    # And so they are where a checkpoint says nothing of how it has its pictures.
    bare = find_data(tmp_path / "folders", {"classes": 10})
    assert (bare.side, bare.view) == (32, None)
    # A network of larger pictures has them larger.
    larger = {"classes": 10, "crop": "resized", "image_size": 64, "evaluation_resize": 72}
    assert find_data(tmp_path / "folders", larger).side == 64


def test_a_corrupted_set_is_made_as_a_network_has_its_pictures(
    digits: Path, tmp_path: Path
) -> None:
    pytest.importorskip("imagecorruptions")
    module = open_model("wrn_10_1", 10)
    network = {"model": "wrn_10_1", "classes": 10, "crop": "resized", "image_size": 48,
               "evaluation_resize": 50}  # fmt: skip
    path = tmp_path / "48.pt"
    save_checkpoint(path, {"state_dict": module.state_dict(), "network": network})
    out = tmp_path / "made"
    made = run("make-c", "--data", str(digits), "--out", str(out), "--n", "2",
               "--checkpoint", str(path))  # fmt: skip
    assert made.exit_code == 0, made.output
    assert np.load(out / "DIGITS-C-made" / "fog.npy").shape == (10, 48, 48, 3)
    names = (out / "DIGITS-C-made" / "classes.txt").read_text().split()
    assert names == list(open_shards(digits / "test").classes)


def test_what_was_measured_is_told_before_what_failed(digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "test").symlink_to(digits / "test")
    (root / "outliers" / "empty").mkdir(parents=True)
    path = checkpoint(tmp_path)
    plot = tmp_path / "radar.png"
    arguments = ("--checkpoint", str(path), "--data", str(root), "--suite", "clean,anomaly")
    result = run(*arguments, "--json", "--plot", str(plot))
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["failed"].keys() == {"anomaly"}
    (found,) = said["networks"].values()
    assert found["clean"]["n"] == 359
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert not plot.exists()
    text = run(*arguments)
    assert text.exit_code == 1
    assert "clean error" in text.stdout
    assert "anomaly could not be measured: " in text.stderr


def test_results_tell_the_code_and_the_files_they_come_from(digits: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    result = run("--checkpoint", str(path), "--data", str(digits), "--suite", "clean", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["provenance"]
    (name,) = json.loads(result.stdout)["networks"]
    assert found["checkpoints"] == {name: file_sha256(path)}
    assert found["data"] == file_sha256(digits / "test" / "manifest.json")
    assert {"torch", "pixmix"} <= found["versions"].keys()
    assert found["hardware"]["world_size"] == 1
    assert found["seconds"] > 0


def test_a_suite_that_was_asked_for_and_lacks_its_data_ends_with_1(
    digits: Path, tmp_path: Path
) -> None:
    arguments = ("--checkpoint", str(checkpoint(tmp_path)), "--data", str(digits))
    result = run(*arguments, "--suite", "clean,c,p", "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["missing"].keys() == {"c", "p"}
    (found,) = said["networks"].values()
    assert found.keys() == {"clean"}
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"Error: c could not be measured: {digits}/DIGITS-C is not there; make")
    assert "; p could not be measured: " in last
    # Nobody asked for them: they are only named.
    assert run(*arguments, "--epsilon", "1").exit_code == 0


def test_a_network_of_nan_is_refused_in_one_line(digits: Path, tmp_path: Path) -> None:
    module = open_model("wrn_10_1", 10)
    torch.nn.init.constant_(next(module.parameters()), torch.nan)
    torch.save(module.state_dict(), tmp_path / "nan.pt")
    arguments = ("--checkpoint", str(tmp_path / "nan.pt"), "--model", "wrn_10_1", "--data",
                 str(digits), "--suite", "clean,calibration")  # fmt: skip
    result = run(*arguments, "--json")
    assert result.exit_code == 1
    assert "NaN" not in result.stdout.replace("are NaN or infinite", "").replace("for NaN in", "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: clean, calibration could not be measured: outputs of the netw")
    assert "NaN or infinite for 359 of 359 pictures" in last


def bare(folder: Path) -> tuple[str, ...]:
    """The options that open a state dict, which says nothing of its network's input."""
    torch.save(open_model("wrn_10_1", 10).state_dict(), folder / "bare.pt")
    return "--checkpoint", str(folder / "bare.pt"), "--model", "wrn_10_1"


CIFAR_MEAN, CIFAR_STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]
TELL = ("--mean", *map(str, CIFAR_MEAN), "--std", *map(str, CIFAR_STD))


@pytest.mark.parametrize(
    ("told", "expected", "words"),
    [
        (
            (),
            ([0.5] * 3, [0.5] * 3, 32, None, ["mean", "std", "image_size", "resize"]),
            "mean 0.5 0.5 0.5, std 0.5 0.5 0.5, pictures of 32x32 as they are; guessed "
            "without --mean, --std, --image-size, --resize",
        ),
        (
            (*TELL, "--image-size", "24", "--resize", "28"),
            (CIFAR_MEAN, CIFAR_STD, 24, 28, []),
            "mean 0.4914 0.4822 0.4465, std 0.247 0.2435 0.2616, shorter side resized to 28, "
            "centre of 24x24",
        ),
        # Of small pictures nothing is cut off unless that is told.
        (
            (*TELL, "--image-size", "48"),
            (CIFAR_MEAN, CIFAR_STD, 48, 48, []),
            "shorter side resized to 48, centre of 48x48",
        ),
        (
            (*TELL, "--image-size", "32"),
            (CIFAR_MEAN, CIFAR_STD, 32, None, []),
            "pictures of 32x32 as they are",
        ),
    ],
)
def test_what_is_told_of_a_networks_input_is_used_and_said(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: tuple[str, ...],
    expected: tuple[Any, ...],
    words: str,
) -> None:
    used: list[Evaluation] = []
    evaluated = command._evaluate
    monkeypatch.setattr(
        command, "_evaluate", lambda each, suites: used.append(each) or evaluated(each, suites)
    )
    arguments = (*bare(tmp_path), "--data", str(digits), "--suite", "clean", "--json")
    result = run(*arguments, *told)
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["inputs"].values()
    assert tuple(found.values()) == expected
    assert list(found) == ["mean", "std", "image_size", "resize", "guessed"]
    (line,) = [each for each in result.stderr.splitlines() if each.startswith("bare.pt: ")]
    assert line.endswith(words)
    ((classifier, data),) = [(each.classifier, each.data) for each in used]
    assert ([*classifier.mean], [*classifier.std], data.side) == expected[:3]
    assert data.need_test().pictures.read(range(2)).shape == (2, data.side, data.side, 3)


def test_what_a_checkpoint_says_of_its_input_stands(digits: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    ours = ("--checkpoint", str(path), "--data", str(digits), "--suite", "clean", "--json")
    result = run(*ours, *TELL)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: {path} says of its network that mean is [0.5, 0.5, 0.5], which stands; leave "
        "--mean [0.4914, 0.4822, 0.4465] out"
    )
    assert run(*ours, "--mean", "0.5", "0.5", "0.5").exit_code == 0
    # Beside a network that does not say it, it is of that one.
    _, theirs, *_ = bare(tmp_path)
    result = run(*ours, "--against", theirs, "--model", "wrn_10_1", *TELL)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["inputs"]
    assert [found[name]["mean"] for name in ("10.pt", "bare.pt")] == [[0.5] * 3, CIFAR_MEAN]


def test_a_checkpoint_whose_view_is_not_whole_is_refused(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "view.pt"
    for said, message in (
        ({}, "says that crop is 'resized', and no image_size; name another file"),
        ({"image_size": None}, "says that crop is 'resized', and no image_size"),
        ({"image_size": 24, "evaluation_resize": 20}, "evaluation_resize is 20 and image_size 24"),
        ({"image_size": 24}, None),
    ):
        network = {"model": "wrn_10_1", "classes": 10, "crop": "resized", **said}
        state = open_model("wrn_10_1", 10).state_dict()
        save_checkpoint(path, {"network": network, "state_dict": state})
        result = run("--checkpoint", str(path), "--data", str(digits), "--suite", "clean")
        assert result.exit_code == (1 if message else 0), result.output
        if message:
            assert result.stderr.startswith(f"Error: {path}: ")
            assert message in result.stderr


def test_two_processes_find_what_one_does(digits: Path, tmp_path: Path) -> None:
    arguments = [
        "run", "--checkpoint", str(checkpoint(tmp_path)), "--data", str(digits), "--json",
        "--suite", "clean,calibration,anomaly",
    ]  # fmt: skip
    alone = run(*arguments)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    both = subprocess.run(
        [*torchrun, "--standalone", "-m", "pipelines.cli.evaluate", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert both.returncode == 0, both.stderr
    (found,), (expected,) = (
        json.loads(text)["networks"].values() for text in (both.stdout, alone.stdout)
    )
    assert found["clean"] == expected["clean"]
    for suite in ("calibration", "anomaly"):
        assert_close(found[suite], expected[suite])


def assert_close(found: Any, expected: Any) -> None:  # noqa: ANN401
    """Compare nested numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value)
    else:
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_bare_state_dict_is_evaluated_by_name(digits: Path, tmp_path: Path) -> None:
    torch.save(open_model("wrn_10_1", 10).state_dict(), tmp_path / "bare.pt")
    result = run(
        "run", "--checkpoint", str(tmp_path / "bare.pt"), "--model", "wrn_10_1", "--data",
        str(digits), "--suite", "clean",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("--suite", "clean,everything"),
        ("--epsilon", "0"),
        ("--epsilon", "nan"),
        ("--plot", "radar.txt"),
        ("--batch-size", "0"),
        ("--mean", "123.7", "116.3", "103.5"),
        ("--mean", "0.5", "nan", "0.5"),
        ("--std", "0", "1", "1"),
        ("--resize", "36"),
        ("--image-size", "32", "--resize", "28"),
        ("--checkpoint", "absent.pt"),
    ],
)
def test_wrong_usage_exits_with_2(digits: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = checkpoint(tmp_path)
    result = run("run", "--data", str(digits), "--checkpoint", str(path), *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_the_test_set_is_found_where_a_training_left_it(digits: Path, tmp_path: Path) -> None:
    found = find_data(digits, {"classes": 10})
    assert (found.name, found.side, found.view) == ("DIGITS", 32, None)
    assert found.classes == tuple("0123456789")
    assert len(found.need_test().labels) == len(found.need_test().pictures) == 359
    (tmp_path / "data").symlink_to(digits)
    assert find_data(tmp_path, {}).name == "DIGITS"
