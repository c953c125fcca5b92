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
from pipelines.loading.workers import prefetch
from pipelines.shards.picture_files import LARGEST_FILE, MOST_PIXELS
from pipelines.system.files import open_regular
from pipelines.system.processes import available_cores

USUAL_FRAMES = 31
"""Of a video of ImageNet-P; so many videos are read at once that their frames make a batch."""
_MOST_FRAMES = 10_000


def read_frames(path: Path, view: View) -> NDArray[np.uint8]:
    """Return all frames of a video, (frames, side, side, 3) uint8.

    Raises:
        PipelineError: if the extra `video` is not installed, or it is no video of two frames or
            more that are as large as the view wants.
    """
    try:
        import av
    except ImportError as error:
        raise PipelineError(
            "videos need PyAV, which is not installed; run pip install 'pixmix[video]'"
        ) from error
    frames: list[NDArray[np.uint8]] = []
    try:
        with (
            open_regular(path, max_bytes=LARGEST_FILE) as file,
            av.open(file, mode="r", format="mp4") as container,
        ):
            for frame in container.decode(video=0):
                if frame.width * frame.height > MOST_PIXELS or len(frames) == _MOST_FRAMES:
                    raise ValueError(
                        f"over {MOST_PIXELS:,} pixels in a frame, or over {_MOST_FRAMES:,} frames"
                    )
                frames.append(view(frame.to_ndarray(format="rgb24").astype(np.uint8)))
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise PipelineError(f"{path} is no whole video ({error}); unpack the set again") from error
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be read: {error.strerror or error}; unpack the set again"
        ) from error
    if len(frames) < 2:
        raise PipelineError(f"{path} has {len(frames)} frame; unpack the set again")
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
    step = max(1, classifier.batch_size // USUAL_FRAMES)
    groups = [own[begin : begin + step] for begin in range(0, len(own), step)]

    def read(group: Sequence[Path]) -> list[NDArray[np.uint8]]:
        with ThreadPoolExecutor(min(len(group), available_cores())) as pool:
            return list(pool.map(lambda path: read_frames(path, view), group))

    mine: list[NDArray[np.int64]] = []
    for sequences in prefetch(iter(groups), read, 1):
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
            classifier.count(len(some))
        ends = np.cumsum([len(each) for each in sequences])[:-1]
        mine.extend(np.split(np.concatenate(found), ends))
    everyones = [each for part in classifier.gather(mine) for each in part]
    if everyones:
        check_outputs(np.concatenate(everyones) >= 0)
    return everyones
