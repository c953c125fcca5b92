from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imagenet_folders import SIDE, colour_classifier, write_video
from pipelines.errors import PipelineError
from pipelines.evaluation.folders import Notices, list_videos
from pipelines.evaluation.images import (
    ArrayImages,
    ResizeCrop,
)
from pipelines.evaluation.predictions import Classifier, Predictions
from pipelines.evaluation.suites import evaluate
from pipelines.system.process_group import Processes
from pipelines.system.ranks import World
from tiny_evaluation import ALONE, IMAGES, Brightness, N, classifier, evaluation, predict_one_by_one


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_answers_do_not_depend_on_the_batch(batch_size: int) -> None:
    asked: list[range] = []

    class Asked(ArrayImages):
        def read(self, numbers: Sequence[int]) -> np.ndarray:
            assert isinstance(numbers, range)
            asked.append(numbers)
            return super().read(numbers)

    found = classifier(batch_size).predict(Asked(IMAGES))
    expected = predict_one_by_one(IMAGES)
    np.testing.assert_array_equal(found.predicted, expected.predicted)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-5)
    assert max(map(len, asked)) == min(batch_size, N)
    assert [number for numbers in asked for number in numbers] == list(range(N))


def test_each_process_answers_its_own_and_all_know_all(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = classifier().predict(ArrayImages(IMAGES))
    parts: dict[int, Predictions] = {}

    def gather(out: list[Predictions], mine: Predictions) -> None:
        parts[rank] = mine
        out[:] = [parts.get(each, mine) for each in range(5)]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank in range(5):
        apart = replace(
            classifier(), processes=Processes(world=World(rank=rank, size=5), device=ALONE.device)
        )
        found = apart.predict(ArrayImages(IMAGES))
    np.testing.assert_array_equal(found.predicted, whole.predicted)
    np.testing.assert_allclose(found.confidence, whole.confidence, rtol=1e-6)
    assert sum(len(each.predicted) for each in parts.values()) == N


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
    bad = int((IMAGES.mean((1, 2, 3)) > 0.75 * 255).sum())
    assert 0 < bad < N
    assert found.values == {}
    assert len(set(found.failed.values())) == 1
    assert f"NaN or infinite for {bad} of {N} images; look" in found.failed["clean"]
    # The bad part is another process's.
    other = classifier().predict(ArrayImages(IMAGES))
    nan = replace(other, confidence=np.full(N, np.nan, np.float32))
    monkeypatch.setattr(Classifier, "gather", lambda _self, mine: [mine, nan])
    with pytest.raises(PipelineError, match=f"infinite for {N} of {2 * N} images"):
        classifier().predict(ArrayImages(IMAGES))


def test_each_video_is_read_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_video(tmp_path / f"{number}.mp4", [100 * number, 555, 555])
    videos = list_videos(tmp_path, Notices())
    whole = colour_classifier().predict_videos(videos, ResizeCrop(32, None))
    assert [each[0] for each in whole] == [0, 100, 200, 300, 400]
    parts: list[list[np.ndarray]] = []
    for rank in range(3):
        some = replace(
            colour_classifier(),
            processes=Processes(world=World(rank=rank, size=3), device=ALONE.device),
        )
        monkeypatch.setattr(Classifier, "gather", lambda _, mine: [mine])
        parts.append(some.predict_videos(videos, ResizeCrop(32, None)))
    assert [len(part) for part in parts] == [1, 2, 2]
    np.testing.assert_array_equal(
        np.concatenate([each for part in parts for each in part]), np.concatenate(whole)
    )


def test_a_network_that_is_not_finite_is_refused_on_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [111] * 3)
    spoilt = colour_classifier()
    spoilt.module.codes[7] = torch.nan
    with pytest.raises(PipelineError, match="NaN or infinite for 3 of 3 images"):
        spoilt.predict_videos(list_videos(tmp_path, Notices()), ResizeCrop(SIDE, 10))
