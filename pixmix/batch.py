"""PixMix for batches of tensors on any torch device, with the same draws as the CPU kernels.

All random numbers are drawn on the host, in a microsecond per sample, and copied to the device in
one transfer; nothing waits for the device. Samples are not mixed one by one: each operation runs
once for all samples that draw it, and each mixing once per round.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pixmix import torch_ops
from pixmix.draws import NO_OPERATION, Plan, draw_plan
from pixmix.images import PackedImages, check_crops, pack_mixing_set
from pixmix.mixing import ADD, MIXINGS, MULTIPLY
from pixmix.operations import OPERATIONS
from pixmix.settings import PixMixSettings, check_indices, check_views

_NUMPY = {torch.int64: np.int64, torch.float64: np.float64, torch.float32: np.float32}
_OPERATIONS: tuple[Callable[..., Tensor], ...] = tuple(
    getattr(torch_ops, row.name) for row in OPERATIONS
)


class BatchPixMix(nn.Module):
    """Mix batches of images on their own device, such as a GPU.

    On the CPU the operations equal those of `mix_batch` byte for byte, and each mixing is within
    1e-6 of its result. Source: Hendrycks et al., "PixMix", CVPR 2022, figure 4.

    Example:
        Mix a batch on the GPU, then normalize it::

            mix = BatchPixMix(open_mixing_set("fractals", 224), beta=4, severity=1).cuda()
            normalize = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            for images, labels in loader:  # (N, 3, 224, 224) uint8
                batch = normalize(mix(images.cuda()))

    Args:
        mixing_set: (H, W, 3) uint8 arrays or `PackedImages`, each image at least as large as those
            to mix. They become a buffer that `to(device)` moves; a state dict does not include it.
            None or an empty set makes every round mix with an augmented copy of the image.
        k: maximum number of mixing rounds, 0 or more.
        beta: mixing strength, 0.001 or more; the larger, the more a round keeps of the image.
        severity: maximum level of the operations, 0.1 to 10.
        all_ops: whether to also draw the operations that overlap corruptions of ImageNet-C.
        geometric: whether to draw rotations, shears and translations; without them boxes and masks
            remain valid.
        mixings: names from `pixmix.mixing.MIXINGS`.
        views: number of independent views to return; None for one without a view axis.

    Raises:
        TypeError: if a mixing image is not a uint8 array, or a parameter has another type.
        ValueError: if a mixing image has another shape, or a parameter is out of range.
    """

    pixels: Tensor

    def __init__(
        self,
        mixing_set: PackedImages | Iterable[NDArray[np.uint8]] | None = None,
        *,
        k: int = 4,
        beta: float = 3.0,
        severity: float = 3.0,
        all_ops: bool = False,
        geometric: bool = True,
        mixings: Sequence[str] = MIXINGS,
        views: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = PixMixSettings(
            k=k,
            beta=beta,
            severity=severity,
            all_ops=all_ops,
            geometric=geometric,
            mixings=mixings,
        )
        self.views = check_views(views)
        packed = pack_mixing_set(mixing_set)
        # Not the packed set itself: the buffer holds its pixels.
        self._offsets, self._heights, self._widths = packed.offsets, packed.heights, packed.widths
        pixels = packed.pixels if packed.pixels.flags.writeable else packed.pixels.copy()
        self.register_buffer("pixels", torch.from_numpy(pixels), persistent=False)

    def forward(
        self,
        images: Tensor,
        *,
        seed: int | None = None,
        epoch: int | None = None,
        indices: Sequence[int] | NDArray[np.int64] | Tensor | None = None,
    ) -> Tensor:
        """Mix a batch; each result is a function of (seed, epoch, index).

        Pass seed, epoch and indices together, or none of them: without indices all batches of an
        epoch would get the same draws, and without the epoch all epochs would.

        Args:
            images: (N, 3, H, W) uint8, on the device of the mixing set.
            seed: any integer, taken modulo 2^64; None to draw one for this batch from torch's
                CPU generator.
            epoch: 0 .. 2^32 - 1.
            indices: (N,) dataset indices of the samples, 0 .. 2^32 - 1, in host memory.

        Returns:
            A float32 tensor in [0, 1] of shape (N, 3, H, W), or (N, views, 3, H, W).

        Raises:
            TypeError: if the images are not a uint8 tensor.
            ValueError: if the images have another shape or device, a mixing image is smaller, or
                only some of seed, epoch and indices are passed.
        """
        self._check(images)
        n = len(images)
        if seed is None and epoch is None and indices is None:
            seed, epoch = int(torch.empty((), dtype=torch.int64).random_()), 0
            numbers = np.arange(n)
        elif seed is None or epoch is None or indices is None:
            raise ValueError(_incomplete_key(seed=seed, epoch=epoch, indices=indices))
        else:
            numbers = check_indices(indices, n)
        n_views = 1 if self.views is None else self.views
        height, width = images.shape[2:]
        plan = draw_plan(
            numbers,
            seed=seed,
            epoch=epoch,
            settings=self.settings,
            size=(height, width),
            source_size=(height, width),
            flip=False,
            views=n_views,
            n_mixing_images=len(self._offsets),
        )
        work = self._work(plan, images, n_views)
        mixed = _compute_images(images, self.pixels, work)
        x = mixed.index_select(0, work.tensors[work.start]).float() / 255
        for mixing, pieces in work.mixes:
            _mix(x, mixed, mixing, [work.tensors[piece] for piece in pieces])
        return x if self.views is None else x.unflatten(0, (n, n_views))

    def extra_repr(self) -> str:
        """Return the arguments, with the length of the mixing set."""
        n = len(self._offsets) or "no"
        return f"{n} mixing images, {self.settings}, views={self.views}"

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"images is {kind}; pass a tensor of uint8, 0..255, and convert it to float after"
            )
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(
                f"images has shape {tuple(images.shape)}; pass (N, 3, H, W), three channels"
            )
        if images.device != self.pixels.device:
            raise ValueError(
                f"images is on {images.device} and the mixing set on {self.pixels.device}; "
                f"move this module with .to({str(images.device)!r})"
            )
        check_crops(self._heights, self._widths, *images.shape[2:])

    def _work(self, plan: Plan, images: Tensor, n_views: int) -> "_Work":
        """Group the work of a plan by operation, and by mixing and round."""
        n, size = len(images), images.shape[2:]
        samples, rounds = plan
        used = np.arange(rounds.shape[1]) < samples["rounds"][:, None]
        # Column 0 is the start of a sample; the others are its rounds.
        codes = np.column_stack(
            [samples["operation"], np.where(used, rounds["operation"], NO_OPERATION)]
        )
        arguments = np.column_stack([samples["argument"], rounds["argument"]])
        own = (np.arange(len(samples)) // n_views)[:, None]
        # The position of each image: first the batch, then operations' results, then mixing crops.
        places = np.broadcast_to(own, codes.shape).copy()
        buffer = _HostBuffer()
        real = torch_ops.real_type(images.device)
        operations, end = [], n
        for code, operation in enumerate(OPERATIONS):
            row, column = np.nonzero(codes == code)
            if len(row) == 0:
                continue
            places[row, column] = np.arange(end, end + len(row))
            pieces = [buffer.add(own[row, 0], torch.int64)]
            if operation.level is not None:
                dtype = torch.int64 if operation.whole else real
                pieces.append(buffer.add(arguments[row, column], dtype))
            operations.append((code, end, pieces))
            end += len(row)
        needing = np.nonzero(plan.needs_mixing_image())[0]
        row, column = np.nonzero(used & (rounds["operation"] == NO_OPERATION))
        places[row, column + 1] = end + np.searchsorted(needing, row)
        crops = [buffer.add(each, torch.int64) for each in self._crops(samples[needing], *size)]
        mixes = []
        for r in range(rounds.shape[1]):
            for code in np.unique(rounds["mixing"][used[:, r], r]):
                row = np.nonzero(used[:, r] & (rounds["mixing"][:, r] == code))[0]
                pieces = [buffer.add(each, torch.int64) for each in (row, places[row, r + 1])]
                for weights in (rounds["a"][row, r], rounds["b"][row, r]):
                    pieces.append(buffer.add(weights.reshape(-1, 1, 1, 1), torch.float32))
                mixes.append((int(code), pieces))
        start = buffer.add(places[:, 0], torch.int64)
        return _Work(
            end + len(needing), operations, end, crops, start, mixes, buffer.to(images.device)
        )  # fmt: skip

    def _crops(
        self, samples: NDArray[np.void], height: int, width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first byte of each sample's mixing crop, and the stride of its rows."""
        image = samples["mixing_image"]
        stride = 3 * self._widths[image].astype(np.int64)
        top = _below(samples["top_word"], self._heights[image] - np.int64(height - 1))
        left = _below(samples["left_word"], self._widths[image] - np.int64(width - 1))
        return self._offsets[image] + top * stride + 3 * left, stride


def _incomplete_key(**parts: object) -> str:
    """Return the error message if only some of seed, epoch and indices are passed."""
    passed = " and ".join(name for name, value in parts.items() if value is not None)
    missing = " and ".join(name for name, value in parts.items() if value is None)
    return (
        f"got {passed} without {missing}: samples of other batches or epochs would get the same "
        "draws; pass seed, epoch and indices (the dataset indices of the samples), or none of them"
    )


class _Work(NamedTuple):
    """The work of a device; a piece is an index into `tensors`.

    Attributes:
        n_images: number of all images: those of the batch, the operations' results, the mixing
            crops.
        operations: (code, position of the first result, pieces); the pieces are source images and,
            if the operation has an argument, arguments.
        first_crop: position of the first mixing crop.
        crops: the pieces with the first bytes and the strides of the mixing crops.
        start: the piece with the image that each row starts from.
        mixes: (code, pieces) for the rows that a mixing changes in a round; the pieces are rows,
            other images, a and b.
        tensors: the pieces.
    """

    n_images: int
    operations: list[tuple[int, int, list[int]]]
    first_crop: int
    crops: list[int]
    start: int
    mixes: list[tuple[int, list[int]]]
    tensors: list[Tensor]


class _HostBuffer:
    """Arrays that are copied to a device in one transfer."""

    def __init__(self) -> None:
        self._pieces: list[tuple[NDArray[np.uint8], torch.dtype, tuple[int, ...]]] = []

    def add(self, array: NDArray[Any], dtype: torch.dtype) -> int:
        """Append an array as int64 or a float type; return the index of the piece."""
        plain = np.ascontiguousarray(array, _NUMPY[dtype])
        self._pieces.append((plain.reshape(-1).view(np.uint8), dtype, plain.shape))
        return len(self._pieces) - 1

    def to(self, device: torch.device) -> list[Tensor]:
        """Return all pieces on the device, in order."""
        # Aligned for any type.
        ends = np.cumsum([0, *(-(-len(piece) // 8) * 8 for piece, _, _ in self._pieces)])
        host = torch.empty(int(ends[-1]), dtype=torch.uint8)
        if device.type == "cuda":
            host = host.pin_memory()
        memory = host.numpy()
        for (piece, _, _), begin in zip(self._pieces, ends, strict=False):
            memory[begin : begin + len(piece)] = piece
        copied = host.to(device, non_blocking=True)
        return [
            copied[begin : begin + len(piece)].view(dtype).view(shape)
            for (piece, dtype, shape), begin in zip(self._pieces, ends.tolist(), strict=False)
        ]


def _below(words: NDArray[np.uint32], n: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return `pixmix.draws.below` of many words."""
    return (words * np.asarray(n, np.uint64) >> np.uint64(32)).astype(np.int64)


def _compute_images(images: Tensor, pixels: Tensor, work: _Work) -> Tensor:
    """Return all images to mix: the batch, the operations' results and the mixing crops."""
    n, _, height, width = images.shape
    result = images.new_empty((work.n_images, 3, height, width))
    result[:n] = images
    for code, first, pieces in work.operations:
        own, *arguments = (work.tensors[piece] for piece in pieces)
        result[first : first + len(own)] = _OPERATIONS[code](
            images.index_select(0, own), *arguments
        )
    start, stride = (work.tensors[piece] for piece in work.crops)
    if len(start):
        # A view of the 3 W bytes at every offset; only the selected rows are copied.
        rows = pixels.as_strided((len(pixels) - 3 * width + 1, 3 * width), (1, 1))
        steps = torch.arange(height, device=images.device)
        places = (start[:, None] + steps * stride[:, None]).flatten()
        crops = rows.index_select(0, places).view(len(start), height, width, 3)
        result[work.first_crop :] = crops.permute(0, 3, 1, 2)
    return result


def _mix(x: Tensor, images: Tensor, mixing: int, pieces: list[Tensor]) -> None:
    """Mix some rows of x with other images, in place."""
    rows, others, a, b = pieces
    own = x.index_select(0, rows)
    other = images.index_select(0, others).float() / 255
    if mixing == ADD:
        mixed = (a * (2 * own - 1) + b * (2 * other - 1) + 1) * 0.5
    elif mixing == MULTIPLY:
        mixed = _multiplied(own, other, a, b)
    else:
        raise ValueError(f"unknown code {mixing} of a mixing")
    x.index_copy_(0, rows, mixed.clamp_(0, 1))


def _multiplied(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return (2x)^a max(2y, 1e-37)^b / 2; halved exponents keep the factors inside float32."""
    root = (2 * x).pow(a / 2) * (2 * y).clamp(min=1e-37).pow(b / 2)
    return root * root / 2
