"""Answers to the frames of videos, as ImageNet-P has them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.answers import Classifier, as_images, check_outputs
from pipelines.evaluation.pictures import View
from pipelines.loading.sources import ahead
from pipelines.shards.workers import available_cores

_USUAL_FRAMES = 31
"""Of a video of ImageNet-P; so many videos are read at once that their frames make a batch."""


def find_videos(folder: Path) -> list[Path]:
    """Return the .mp4 files of a folder and the folders in it, sorted.

    Raises:
        PipelineError: if there is none.
    """
    found = sorted(path for path in folder.rglob("*.mp4") if not path.name.startswith("."))
    if not found:
        raise PipelineError(f"{folder} holds no .mp4 files; unpack the set again")
    return found


def read_frames(path: Path, view: View) -> NDArray[np.uint8]:
    """Return all frames of a video, (frames, side, side, 3) uint8.

    Raises:
        PipelineError: if the extra `video` is not installed, or it is no video of two frames or
            more that are as large as the view wants.
        OSError: if it cannot be read.
    """
    try:
        import av
    except ImportError as error:
        raise PipelineError(
            "videos need PyAV, which is not installed; run pip install 'pixmix[video]'"
        ) from error
    try:
        with av.open(str(path), format="mp4") as container:
            frames = [
                view(frame.to_ndarray(format="rgb24").astype(np.uint8))
                for frame in container.decode(video=0)
            ]
    except (av.error.InvalidDataError, IndexError, ValueError) as error:
        raise PipelineError(
            f"{path} is no whole video ({error}); put a whole one in its place"
        ) from error
    if len(frames) < 2:
        raise PipelineError(f"{path} has {len(frames)} frame; put a whole one in its place")
    return np.stack(frames)


def answer_videos(
    classifier: Classifier, videos: Sequence[Path], view: View
) -> list[NDArray[np.int64]]:
    """Return the outputs that are predicted for the frames of each video, in every process.

    Args:
        classifier: the network.
        videos: their files; each is read in one process.
        view: how a frame becomes the network's picture.

    Raises:
        PipelineError: if one cannot be read, or, in every process, if an output is not finite.
    """
    rank, size = classifier.processes.world.rank, classifier.processes.world.size
    own = videos[len(videos) * rank // size : len(videos) * (rank + 1) // size]
    step = max(1, classifier.batch_size // _USUAL_FRAMES)
    groups = [own[begin : begin + step] for begin in range(0, len(own), step)]

    def read(group: Sequence[Path]) -> list[NDArray[np.uint8]]:
        with ThreadPoolExecutor(min(len(group), available_cores())) as pool:
            return list(pool.map(lambda path: read_frames(path, view), group))

    mine: list[NDArray[np.int64]] = []
    for sequences in ahead(iter(groups), read, 1):
        found = []
        frames = np.concatenate(sequences)
        for begin in range(0, len(frames), classifier.batch_size):
            some = frames[begin : begin + classifier.batch_size]
            images = as_images(some, classifier.processes.device)
            with torch.no_grad():
                outputs = classifier.logits(images)
            # -1: outputs that are not finite; all processes are to see it.
            sound = outputs.isfinite().all(1)
            found.append(outputs.argmax(1).where(sound, -1).cpu().numpy())
        ends = np.cumsum([len(each) for each in sequences])[:-1]
        mine.extend(np.split(np.concatenate(found), ends))
    everyones = [each for part in classifier.gather(mine) for each in part]
    if everyones:
        check_outputs(np.concatenate(everyones) >= 0)
    return everyones
