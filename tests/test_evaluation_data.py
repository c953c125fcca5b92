from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_folders import METADATA, SIDE, WNIDS, imagenet_evaluation, write_image, write_tree
from pipelines.errors import PipelineError
from pipelines.evaluation.data import locate_test_set, normalization, open_evaluation_data
from pipelines.evaluation.folders import Notices
from pipelines.evaluation.images import (
    ResizeCrop,
)
from pipelines.evaluation.suites import evaluate, missing_inputs
from pipelines.shards.output import Folder
from pipelines.shards.request import ShardRequest
from pipelines.shards.sharding import make_shards
from pipelines.shards.sources import ImageFolderSource
from pipelines.system.processes import run_chunks
from pipelines.system.progress import no_progress


def test_the_test_set_of_a_training_run_is_found(digits: Path, tmp_path: Path) -> None:
    found = open_evaluation_data(digits, {"classes": 10})
    assert (found.name, found.side, found.transform) == ("DIGITS", 32, None)
    assert found.classes == tuple("0123456789")
    assert len(found.require_test().labels) == len(found.require_test().images) == 359
    (tmp_path / "data").symlink_to(digits)
    assert open_evaluation_data(tmp_path, {}).name == "DIGITS"


def test_class_folders_get_the_outputs_of_their_wordnet_ids(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", [7, 402, 999], n=2)
    data = open_evaluation_data(tmp_path, METADATA)
    assert data.name == "ImageNet"
    assert data.transform == ResizeCrop(SIDE, 10)
    np.testing.assert_array_equal(data.require_test().labels, [7, 7, 402, 402, 999, 999])
    assert evaluate(imagenet_evaluation(tmp_path), ["clean"]).values["clean"] == {
        "error": 0.0,
        "n": 6,
    }


def test_shards_of_some_classes_get_the_outputs_of_those_classes(tmp_path: Path) -> None:
    write_tree(tmp_path / "images", [7, 402, 999])
    make_shards(
        ShardRequest(
            store=Folder(path=tmp_path / "shards" / "val"), name="imagenet-val", split="val",
            shard_size=9, source=ImageFolderSource(folder=tmp_path / "images"), jobs=1,
        ),
        run=run_chunks, progress=no_progress,
    )  # fmt: skip
    data = open_evaluation_data(tmp_path / "shards", METADATA)
    assert data.name == "ImageNet"
    np.testing.assert_array_equal(np.sort(data.require_test().labels), [7, 402, 999])
    assert (
        evaluate(imagenet_evaluation(tmp_path / "shards"), ["clean"]).values["clean"]["error"] == 0
    )


def test_class_names_of_the_network_precede_alphabetical_order(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_image(tmp_path / "test" / name / "0.png", (1, 2, 3))
    said = {**METADATA, "classes": 2, "class_names": ["dog", "cat"]}
    np.testing.assert_array_equal(
        open_evaluation_data(tmp_path, said).require_test().labels, [1, 0]
    )
    del said["class_names"]
    data = open_evaluation_data(tmp_path, said)
    np.testing.assert_array_equal(data.require_test().labels, [0, 1])
    assert data.classes == ("cat", "dog")
    assert data.name == tmp_path.name.upper()
    with pytest.raises(
        PipelineError, match="has a class 'cat', which is not one of the network's 2"
    ):
        open_evaluation_data(tmp_path, {**said, "class_names": ["dog", "horse"]})
    with pytest.raises(PipelineError, match="has 2 classes and the network has 1 outputs"):
        open_evaluation_data(tmp_path, {**said, "classes": 1})


def test_torchvision_models_get_the_preprocessing_of_their_weights(tmp_path: Path) -> None:
    for name, transform, mean in (
        ("resnet50", ResizeCrop(224, 256), 0.485),
        ("inception_v3", ResizeCrop(299, 342), 0.485),
        ("efficientnet_v2_l", ResizeCrop(480, 480), 0.5),
        ("ours:function", ResizeCrop(224, 256), 0.485),
    ):
        said = {"classes": 1000, "model": name}
        found = open_evaluation_data(tmp_path, said)
        assert (found.transform, found.side) == (transform, transform.side), name
        assert normalization(said, found)[0][0] == mean, name
        # Metadata precede the defaults.
        assert open_evaluation_data(tmp_path, {**METADATA, "model": name}).transform == ResizeCrop(
            SIDE, 10
        )
        assert normalization({**said, "mean": [0.1, 0.2, 0.3]}, found)[0] == (0.1, 0.2, 0.3)


def test_hidden_folders_are_not_classes(tmp_path: Path) -> None:
    for name in ("a", "b", ".ipynb_checkpoints", "__MACOSX"):
        write_image(tmp_path / "val" / name / "a.png", (1, 2, 3))
    data = open_evaluation_data(tmp_path, {"classes": 2})
    np.testing.assert_array_equal(data.require_test().labels, [0, 1])
    assert "ignored 2 hidden" in str(data.notices.ignored_line())


def write_folders(folder: Path, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (place, place, place)).save(folder / name / "a.png")


@pytest.mark.parametrize(
    ("named", "names", "root"),
    [
        ("imagenet/val", WNIDS[:2], "imagenet"),
        ("ImageNet-V2", ["0", "1"], "ImageNet-V2"),
        ("photos/test", ["cat", "dog"], "photos"),
        ("pets", ["cat", "dog"], "pets"),
    ],
)
def test_data_may_be_the_class_folders_themselves(
    tmp_path: Path, named: str, names: Sequence[str], root: str
) -> None:
    write_folders(tmp_path / named, names)
    known = ["cat", "dog"] if "cat" in names else []
    said = {"classes": len(known) or 1000, "class_names": known}
    data = open_evaluation_data(tmp_path / named, said)
    assert data.root.resolve() == (tmp_path / root).resolve()
    assert len(data.require_test().labels) == len(names)
    assert len([line for line in data.notices.lines if "used as the test set" in line]) == 1


def test_folders_of_other_datasets_are_not_class_folders(tmp_path: Path) -> None:
    for name in ("outliers", "imagenet-r", "CIFAR-10-C"):
        (tmp_path / name).mkdir()
    assert not locate_test_set(tmp_path, Notices()).found


@pytest.mark.parametrize("place", ["val", "test", "."])
def test_images_without_class_folders_are_rejected(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(tmp_path / place / "a.png")
    with pytest.raises(PipelineError, match="holds images but no class folders"):
        missing_inputs(tmp_path, None)
    assert (
        "holds images but no class folders"
        in open_evaluation_data(tmp_path, {"classes": 1000}).missing
    )


def test_class_names_must_match_the_number_of_outputs(tmp_path: Path) -> None:
    write_folders(tmp_path / "val", ["a", "b"])
    with pytest.raises(PipelineError, match="name 1 classes and the network has 2 outputs"):
        open_evaluation_data(tmp_path, {"classes": 2, "class_names": ["a"]})
