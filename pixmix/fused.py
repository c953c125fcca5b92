"""PixMix of a batch on the CPU: checks, draws, and shares the rows among threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from pixmix.arguments import count_of_views, sample_indices, whole
from pixmix.draws import NO_OPERATION, Plan, draw_plan
from pixmix.kernels import BFLOAT16, FLOAT16, FLOAT32, mix_samples, scratch_for
from pixmix.packed import Layout, PackedPictures, check_crops
from pixmix.settings import PixMixSettings

_CODES = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
NO_PICTURES = PackedPictures.pack([])
NO_FLOATS = np.empty((1, 3, 0, 0), np.float32)
NO_HALVES = np.empty((1, 3, 0, 0), np.uint16)


def mix_batch(
    images: NDArray[np.uint8],
    mixing_set: PackedPictures | None,
    indices: NDArray[np.int64] | Sequence[int],
    *,
    seed: int,
    epoch: int,
    settings: PixMixSettings | None,
    views: int | None = None,
    plain_first: bool = False,
    flip: bool = False,
    padding: int = 0,
    crop: tuple[int, int] | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    n_threads: int = 1,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return a batch flipped, cropped, mixed and normalised: a function of (seed, epoch, index).

    The pixels of a sample depend on nothing else: not on its place in the batch, nor on threads.

    Args:
        images: (N, H, W, 3) uint8, C-contiguous.
        mixing_set: each picture at least as large as the crop; None or an empty one lets every
            round mix with what an operation makes of the picture.
        indices: (N,) numbers of the samples in their set, 0 .. 2^32 - 1.
        seed: any whole number; taken modulo 2^64.
        epoch: 0 .. 2^32 - 1.
        settings: of PixMix; None for flip, crop and normalisation alone.
        views: how many independent PixMix views of each sample, which share flip and crop; None
            for one, without an axis of views.
        plain_first: leave the first of several views unmixed, as AugMix's loss wants it.
        flip: mirror each sample left to right with probability 1/2.
        padding: black pixels around an image before it is cropped.
        crop: (height, width) of the random crop; None for (H, W).
        mean: of red, green and blue, subtracted from values in [0, 1].
        std: what they are divided by then.
        dtype: torch.float32, or torch.float16 or torch.bfloat16, rounded to nearest, ties to even.
        n_threads: how many threads share the batch; the interpreter's lock is released.
        out: where to write, of the result's shape and dtype, contiguous and on the CPU (pinned, or
            shared with another process); None for a new tensor.

    Returns:
        (N, 3, height, width), or (N, views, 3, height, width).

    Raises:
        TypeError: for images, indices, dtype or out of another type.
        ValueError: for shapes that do not fit, and numbers out of range.

    Source: Hendrycks et al., "PixMix", CVPR 2022, figure 4; `pixmix.draws` for what is drawn.
    """
    images = _check_images(images)
    indices = sample_indices(indices, len(images))
    _check_kinds(mixing_set, settings)
    padding = whole("padding", padding, 0)
    views = count_of_views(views)
    source_size = (images.shape[1] + 2 * padding, images.shape[2] + 2 * padding)
    height, width = _check_crop(crop) or (images.shape[1], images.shape[2])
    if not (1 <= height <= source_size[0] and 1 <= width <= source_size[1]):
        raise ValueError(
            f"a crop of {height}x{width} (height x width) does not fit into images of "
            f"{images.shape[1]}x{images.shape[2]} padded by {padding}; crop less or pad more"
        )
    n_threads = whole("n_threads", n_threads, 1)
    means, deviations = _normalisation(mean, std)
    pictures = NO_PICTURES if mixing_set is None else mixing_set
    check_crops(pictures.heights, pictures.widths, height, width)
    n_views = 1 if views is None else views
    plan = draw_plan(
        indices,
        seed=seed,
        epoch=epoch,
        settings=settings,
        size=(height, width),
        source_size=source_size,
        flip=flip,
        views=n_views,
        n_pictures=len(pictures),
    )
    if plain_first:
        if views is None:
            raise ValueError("plain_first is for several views; give views, as 3")
        plain = plan.samples[::n_views]
        plain["operation"], plain["rounds"] = NO_OPERATION, 0
    shape = (len(images), *(() if views is None else (views,)), 3, height, width)
    result = _output(out, shape, dtype)
    flat = result.view(-1, 3, height, width)
    if dtype == torch.float32:
        floats, halves = flat.numpy(), NO_HALVES
    else:
        floats, halves = NO_FLOATS, flat.view(torch.uint16).numpy()
    mix_planned(
        images,
        pictures.layout,
        plan,
        floats,
        halves,
        code=_CODES[dtype],
        n_views=n_views,
        padding=padding,
        means=means,
        deviations=deviations,
        n_threads=n_threads,
    )
    return result


def mix_planned(
    images: NDArray[np.uint8],
    pictures: Layout,
    plan: Plan,
    floats: NDArray[np.float32],
    halves: NDArray[np.uint16] = NO_HALVES,
    *,
    code: int = FLOAT32,
    n_views: int,
    padding: int,
    means: NDArray[np.float32],
    deviations: NDArray[np.float32],
    n_threads: int,
) -> None:
    """Write a batch as a plan says; nothing is checked.

    floats, halves: (N * n_views, 3, height, width), of which `code` says which is written; the
    other is anything.
    """
    height, width = (halves if floats is NO_FLOATS else floats).shape[2:]

    def mix_rows(first: int, last: int) -> None:
        mix_samples(
            images,
            *pictures,
            *plan,
            first,
            last,
            n_views,
            padding,
            means,
            deviations,
            code,
            floats,
            halves,
            *scratch_for(height, width, plan.rounds.shape[1]),
        )

    n_rows = len(plan.samples)
    if n_threads == 1 or n_rows < 2:
        mix_rows(0, n_rows)
        return
    edges = [n_rows * part // n_threads for part in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads) as pool:
        for done in [pool.submit(mix_rows, *part) for part in pairwise(edges)]:
            done.result()


def _check_kinds(mixing_set: object, settings: object) -> None:
    if not (mixing_set is None or isinstance(mixing_set, PackedPictures)):
        raise TypeError(
            f"mixing_set is {type(mixing_set).__name__}; give what open_mixing_set returns, or "
            "PackedPictures.pack(pictures), or None"
        )
    if not (settings is None or isinstance(settings, PixMixSettings)):
        raise TypeError(
            f"settings is {type(settings).__name__}; give PixMixSettings(k=4, ...), or None for "
            "flip and crop alone"
        )


def _check_crop(crop: object) -> tuple[int, int] | None:
    if crop is None:
        return None
    if not (isinstance(crop, Sequence) and len(crop) == 2):
        raise TypeError(f"crop is {crop!r}; give (height, width) in pixels, or None for no crop")
    return whole("crop's height", crop[0], 1), whole("crop's width", crop[1], 1)


def _check_images(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise TypeError(f"images is {kind}; give an (N, H, W, 3) array of uint8")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise ValueError(
            f"images has shape {images.shape}; give (N, H, W, 3), channels last "
            "(a tensor: images.permute(0, 2, 3, 1).contiguous().numpy())"
        )
    images = np.ascontiguousarray(images)
    # A kernel is compiled anew, for seconds, for the type of arrays that cannot be written.
    return images if images.flags.writeable else images.copy()


def _normalisation(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    means, deviations = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if means.shape != (3,) or not np.isfinite(means).all():
        raise ValueError(f"mean is {mean}; give three numbers: of red, green and blue")
    if deviations.shape != (3,) or not (np.isfinite(deviations) & (deviations > 0)).all():
        raise ValueError(f"std is {std}; give three numbers above 0: of red, green and blue")
    return means, deviations


def _output(out: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype not in _CODES:
        raise TypeError(f"dtype is {dtype}; give torch.float32, torch.float16 or torch.bfloat16")
    if out is None:
        return torch.empty(shape, dtype=dtype)
    if not isinstance(out, torch.Tensor) or out.requires_grad:
        kind = "a tensor that requires a gradient" if isinstance(out, torch.Tensor) else type(out)
        raise TypeError(f"out is {kind}; give a plain tensor of {dtype} on the CPU")
    if out.dtype != dtype or out.device.type != "cpu":
        raise TypeError(f"out is {out.dtype} on {out.device}; give a tensor of {dtype} on the CPU")
    if tuple(out.shape) != shape or not out.is_contiguous():
        raise ValueError(
            f"out has shape {tuple(out.shape)} (contiguous: {out.is_contiguous()}); give a "
            f"contiguous tensor of shape {shape}"
        )
    return out
