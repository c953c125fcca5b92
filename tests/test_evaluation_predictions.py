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
def test_predictions_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    batches: list[range] = []

    class RecordingImages(ArrayImages):
        def read(self, indices: Sequence[int]) -> np.ndarray:
            assert isinstance(indices, range)
            batches.append(indices)
            return super().read(indices)

    predictions = classifier(batch_size).predict(RecordingImages(IMAGES))
    expected = predict_one_by_one(IMAGES)
    np.testing.assert_array_equal(predictions.predicted, expected.predicted)
    np.testing.assert_allclose(predictions.confidence, expected.confidence, rtol=1e-5)
    assert max(map(len, batches)) == min(batch_size, N)
    assert [index for batch in batches for index in batch] == list(range(N))


def test_processes_share_the_images_and_gather_all_predictions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = classifier().predict(ArrayImages(IMAGES))
    parts: dict[int, Predictions] = {}

    def gather(out: list[Predictions], own: Predictions) -> None:
        parts[rank] = own
        out[:] = [parts.get(each, own) for each in range(5)]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank in range(5):
        one_of_five = replace(
            classifier(), processes=Processes(world=World(rank=rank, size=5), device=ALONE.device)
        )
        gathered = one_of_five.predict(ArrayImages(IMAGES))
    np.testing.assert_array_equal(gathered.predicted, expected.predicted)
    np.testing.assert_allclose(gathered.confidence, expected.confidence, rtol=1e-6)
    assert sum(len(each.predicted) for each in parts.values()) == N


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_outputs_are_rejected_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    class Nonfinite(Brightness):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            logits[:, 0] = torch.where(x.mean((1, 2, 3)) > 0.5, value, logits[:, 0])
            return logits

    nonfinite = replace(classifier(), module=Nonfinite().eval())
    results = evaluate(evaluation(tmp_path, classifier=nonfinite), ["clean", "calibration"])
    n_bright = int((IMAGES.mean((1, 2, 3)) > 0.75 * 255).sum())
    assert 0 < n_bright < N
    assert results.values == {}
    assert len(set(results.failed.values())) == 1
    assert f"NaN or infinite for {n_bright} of {N} images; check" in results.failed["clean"]
    # Another process has the nonfinite outputs.
    other = classifier().predict(ArrayImages(IMAGES))
    nan = replace(other, confidence=np.full(N, np.nan, np.float32))
    monkeypatch.setattr(Classifier, "gather", lambda _self, own: [own, nan])
    with pytest.raises(PipelineError, match=f"infinite for {N} of {2 * N} images"):
        classifier().predict(ArrayImages(IMAGES))


def test_each_video_is_read_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_video(tmp_path / f"{number}.mp4", [100 * number, 555, 555])
    videos = list_videos(tmp_path, Notices())
    expected = colour_classifier().predict_videos(videos, ResizeCrop(32, None))
    assert [each[0] for each in expected] == [0, 100, 200, 300, 400]
    parts: list[list[np.ndarray]] = []
    for rank in range(3):
        one_of_three = replace(
            colour_classifier(),
            processes=Processes(world=World(rank=rank, size=3), device=ALONE.device),
        )
        monkeypatch.setattr(Classifier, "gather", lambda _, own: [own])
        parts.append(one_of_three.predict_videos(videos, ResizeCrop(32, None)))
    assert [len(part) for part in parts] == [1, 2, 2]
    np.testing.assert_array_equal(
        np.concatenate([each for part in parts for each in part]), np.concatenate(expected)
    )


def test_nonfinite_outputs_are_rejected_on_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [111] * 3)
    nonfinite = colour_classifier()
    nonfinite.module.codes[7] = torch.nan
    with pytest.raises(PipelineError, match="NaN or infinite for 3 of 3 images"):
        nonfinite.predict_videos(list_videos(tmp_path, Notices()), ResizeCrop(SIDE, 10))
