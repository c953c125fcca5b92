"""Which output a class folder stands for, in every way that folders are named."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest

from imagenet_folders import WNIDS
from pipelines.errors import PipelineError
from pipelines.evaluation.folders import are_imagenet_classes, match_classes
from pipelines.models.registry import find_outputs


def test_imagenets_classes_are_a_thousand_sorted_wordnet_ids() -> None:
    assert len(set(WNIDS)) == 1000
    assert list(WNIDS) == sorted(WNIDS)
    assert (WNIDS[0], WNIDS[281], WNIDS[999]) == ("n01440764", "n02123045", "n15075141")
    assert are_imagenet_classes(WNIDS[3:5])
    assert not are_imagenet_classes(("cat", WNIDS[3]))
    assert not are_imagenet_classes(())


def test_classes_that_a_network_does_not_have_are_named() -> None:
    np.testing.assert_array_equal(find_outputs(["b", "a"], ["a", "b", "c"], "set"), [1, 0])
    with pytest.raises(PipelineError, match="set has a class 'd', which is not one of"):
        find_outputs(["a", "d"], ["a", "b", "c"], "set")


CAFE = "caf\u00e9"


@pytest.mark.parametrize(
    ("names", "known", "n_outputs", "expected"),
    [
        # Numbers are labels by value, whatever the order of their names.
        (sorted(map(str, range(12))), (), 12, sorted(range(12), key=str)),
        (["00", "01", "02"], (), 3, [0, 1, 2]),
        (["0", "2", "7"], (), 10, [0, 2, 7]),
        (sorted(map(str, range(1000))), (), 1000, sorted(range(1000), key=str)),
        (["0", "10", "2"], WNIDS, 1000, [0, 10, 2]),
        # Names of the network's classes count before their order, and before their value.
        (["b", "a"], ("c", "b", "a"), 3, [1, 2]),
        (["1", "10", "2"], ("1", "10", "2"), 3, [0, 1, 2]),
        ([unicodedata.normalize("NFD", CAFE), "b"], ("b", CAFE), 2, [1, 0]),
        ([CAFE], (unicodedata.normalize("NFD", CAFE),), 1, [0]),
        ([WNIDS[7], WNIDS[3]], (), 1000, [7, 3]),
        # Other names by their order, where there are as many as outputs.
        (["a", "b", "c"], (), 3, [0, 1, 2]),
        (["n00000001", "n00000002"], (), 2, [0, 1]),
        (["a", "b"], (), None, [0, 1]),
        # Numbered names of fewer classes, where place and number agree.
        (["c0", "c1", "c2"], (), 10, [0, 1, 2]),
        ([f"class_{i:02}" for i in range(11)], (), 12, list(range(11))),
        ([f"class_{i:02}" for i in range(1, 13)], (), 12, list(range(12))),
    ],
)
def test_a_class_folder_stands_for_an_output(
    names: Sequence[str], known: Sequence[str], n_outputs: int | None, expected: Sequence[int]
) -> None:
    found = match_classes(names, known, n_outputs, "val")
    np.testing.assert_array_equal(found.outputs, expected)
    if found.classes:
        assert len(found.classes) == (n_outputs or len(names))


@pytest.mark.parametrize(
    ("names", "known", "n_outputs", "said"),
    [
        (["0", "1", "12"], (), 12, ("3 numbered", "1 ('12')", "12 outputs")),
        (["-1", "0", "1"], (), 3, ("'-1'", "0 to 2")),
        (["1", "01"], (), 3, ("'1', '01'",)),
        (["9" * 200], (), None, ("not within",)),
        ([*map(str, range(11)), "extra"], (), 12, ("12 classes", "11", "1 not ('extra')")),
        ([*WNIDS, "extra"], (), 1000, ("1001 classes", "1000", "1 not ('extra')")),
        ([*WNIDS[:999], "extra"], (), 1000, ("1000 classes", "999", "1 not ('extra')")),
        ([*WNIDS[:99], "extra"], (), 100, ("99", "1 not ('extra')")),
        ([*WNIDS[:999], "n99999999"], (), 1000, ("'n99999999'", "1 of 1000")),
        (["0", WNIDS[3]], (), 1000, ("'0'",)),
        (["a", "b"], (), 3, ("2 classes", "3 outputs")),
        (["c0", "c2"], (), 3, ("2 classes", "3 outputs")),
        (["c1", "c2"], (), 3, ("2 classes", "3 outputs")),
        (["c0", "d1"], (), 3, ("2 classes", "3 outputs")),
        (["fold0", "fold1", "fold2"], (), 10, ("3 classes", "10 outputs")),
        (sorted(f"class{i}" for i in range(12)), (), 12, ("'class11'", "'class2'")),
        (["a", "b", "c", "d"], (), 3, ("4 classes", "3 outputs")),
        (["cat", "Dog"], ("cat", "dog"), 2, ("'Dog'", "'dog'", "only in case")),
        (["cat", "cow"], ("cat", "dog"), 2, ("'cow'", "1 of 2")),
        (["0", "1"], ("cat", "dog"), 2, ("'0'", "2 of 2")),
        ([CAFE, unicodedata.normalize("NFD", CAFE)], (CAFE, "b"), 2, (repr(CAFE),)),
        (["a"], ("a", "a"), 2, ("'a'",)),
    ],
)
def test_labels_that_would_be_shifted_or_guessed_are_refused_with_the_counts(
    names: Sequence[str], known: Sequence[str], n_outputs: int | None, said: Sequence[str]
) -> None:
    with pytest.raises(PipelineError) as refused:
        match_classes(names, known, n_outputs, "val")
    assert all(each in str(refused.value) for each in said), str(refused.value)
