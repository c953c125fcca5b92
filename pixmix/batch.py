"""PixMix for whole batches on any torch device: the draws of the kernels, in torch operations.

What is drawn is drawn on the host, a microsecond a sample, and shipped as one piece of memory; the
device is never waited for. There is no loop over samples: all that get the same operation get it
together, and so do all that mix the same way in the same round.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pixmix import torch_ops
from pixmix.arguments import count_of_views, names_of_mixings, sample_indices
from pixmix.draws import NO_OPERATION, Plan, draw_plan
from pixmix.op_kernels import OPERATIONS, rotation_entries
from pixmix.packed import PackedPictures, check_crops
from pixmix.settings import MIXINGS, PixMixSettings

_ROTATE = OPERATIONS.index("rotate")


class BatchPixMix(nn.Module):
    """Mix a batch of images on the device where they are.

    On the CPU the operations have the bytes of `mix_batch`'s, and a mixing is within 1e-6 of its
    values. Source: Hendrycks et al., "PixMix", CVPR 2022, figure 4.

    Args:
        mixing_set: (H, W, 3) uint8 arrays, or them packed, each at least as large as the images.
            They are held as one buffer, which `to(device)` moves and a state dict does not hold.
            None or an empty one: every round mixes with what an operation makes of the image.
        k: the most rounds of mixing.
        beta: above 0; the larger, the more a mixing keeps of the image.
        severity: of the operations, 0.1 to 10.
        all_ops: draw color, contrast, brightness and sharpness too (they overlap ImageNet-C).
        geometric: draw rotations, shears and translations; without them boxes and masks hold.
        mixings: names from `pixmix.settings.MIXINGS`.
        views: how many independent views to give; None for one, without an axis of views.

    Raises:
        TypeError: for a mixing picture that is no uint8 array, or a number that is none.
        ValueError: for a mixing picture of another shape, or a number out of range.
    """

    pixels: Tensor

    def __init__(
        self,
        mixing_set: PackedPictures | Iterable[NDArray[np.uint8]] | None = None,
        *,
        k: int = 4,
        beta: float = 3.0,
        severity: float = 3.0,
        all_ops: bool = False,
        geometric: bool = True,
        mixings: Sequence[str] = ("add", "multiply"),
        views: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = PixMixSettings(
            k=k,
            beta=beta,
            severity=severity,
            all_ops=all_ops,
            geometric=geometric,
            mixings=names_of_mixings(mixings),
        )
        self.views = count_of_views(views)
        packed = _packed(mixing_set)
        # Without their pixels, which the buffer holds.
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
        """Return the images mixed: a function of (seed, epoch, index) for each.

        Pass seed, epoch and indices together, or none of them: without the indices all batches of
        an epoch would get the same draws, and without the epoch all epochs.

        Args:
            images: (N, 3, H, W) uint8, on the device of this module's buffer.
            seed: any whole number, taken modulo 2^64; None to draw one from torch's generator of
                the CPU, for this batch alone.
            epoch: 0 .. 2^32 - 1.
            indices: (N,) numbers of the samples in their dataset, 0 .. 2^32 - 1, not on a device
                that would have to be waited for.

        Returns:
            (N, 3, H, W), or (N, views, 3, H, W), float32 in [0, 1].

        Raises:
            TypeError: for images that are no uint8 tensor.
            ValueError: for another shape or device, a smaller mixing picture, or some of seed,
                epoch and indices without the others.
        """
        self._check(images)
        n = len(images)
        if seed is None and epoch is None and indices is None:
            seed, epoch = int(torch.empty((), dtype=torch.int64).random_()), 0
            numbers = np.arange(n)
        elif seed is None or epoch is None or indices is None:
            raise ValueError(_incomplete_key(seed=seed, epoch=epoch, indices=indices))
        else:
            numbers = sample_indices(indices, n)
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
            n_pictures=len(self._offsets),
        )
        work = self._shipped(plan, images, n_views)
        pictures = _made(images, self.pixels, work)
        x = pictures.index_select(0, work.start).float() / 255
        for mix in work.mixes:
            _mix(x, pictures, mix)
        return x if self.views is None else x.unflatten(0, (n, n_views))

    def extra_repr(self) -> str:
        """Return the arguments, the mixing set by its length."""
        settings = self.settings
        n = len(self._offsets)
        return (
            f"{n if n else 'no'} mixing pictures, k={settings.k}, beta={settings.beta:g}, "
            f"severity={settings.severity:g}, all_ops={settings.all_ops}, "
            f"geometric={settings.geometric}, mixings={settings.mixings}, views={self.views}"
        )

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"images is {kind}; give a tensor of uint8, 0..255, before it is made float"
            )
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(
                f"images has shape {tuple(images.shape)}; give (N, 3, H, W), three channels"
            )
        if images.device != self.pixels.device:
            raise ValueError(
                f"images is on {images.device} and the mixing set on {self.pixels.device}; "
                f"move this module with .to({str(images.device)!r})"
            )
        check_crops(self._heights, self._widths, *images.shape[2:])

    def _shipped(self, plan: Plan, images: Tensor, n_views: int) -> "_Work":
        """Return what the device has to do, in as many pieces as there are kinds of work."""
        n, height, width = len(images), *images.shape[2:]
        samples, rounds = plan
        rows = np.arange(len(samples))
        used = np.arange(rounds.shape[1]) < samples["rounds"][:, None]
        # Column 0 is what a sample starts from; the rest are its rounds.
        codes = np.column_stack(
            [samples["operation"], np.where(used, rounds["operation"], NO_OPERATION)]
        )
        arguments = np.column_stack([samples["argument"], rounds["argument"]])
        own = (rows // n_views)[:, None]
        # Where each picture will lie: the images, what operations make, crops of the mixing set.
        places = np.broadcast_to(own, codes.shape).copy()
        freight = _Freight(images.device)
        made, end = [], n
        for code in range(len(OPERATIONS)):
            row, column = np.nonzero(codes == code)
            if len(row) == 0:
                continue
            places[row, column] = np.arange(end, end + len(row))
            made.append(
                (
                    code,
                    end,
                    len(row),
                    freight.add_whole(own[row, 0]),
                    _add_arguments(freight, code, arguments[row, column]),
                )
            )
            end += len(row)
        needing = np.nonzero(plan.needs_picture())[0]
        row, column = np.nonzero(used & (rounds["operation"] == NO_OPERATION))
        places[row, column + 1] = end + np.searchsorted(needing, row)
        start, stride = self._crops(samples[needing], height, width)
        crops = (end, len(needing), freight.add_whole(start), freight.add_whole(stride))
        mixes = []
        for r in range(rounds.shape[1]):
            for code in np.unique(rounds["mixing"][used[:, r], r]):
                row = np.nonzero(used[:, r] & (rounds["mixing"][:, r] == code))[0]
                mixes.append(_add_mix(freight, int(code), row, places[row, r + 1], rounds[row, r]))
        at_start = freight.add_whole(places[:, 0])
        shipped = freight.ship()
        return _Work(
            n_pictures=end + len(needing),
            made=[
                (code, first, count, shipped[own_place], shipped[argument])
                for code, first, count, own_place, argument in made
            ],
            crops=(*crops[:2], shipped[crops[2]], shipped[crops[3]]),
            start=shipped[at_start],
            mixes=[_Mix(name, *(shipped[each] for each in pieces)) for name, pieces in mixes],
        )

    def _crops(
        self, samples: NDArray[np.void], height: int, width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first byte of each sample's crop and how far apart its rows are."""
        picture = samples["picture"]
        stride = 3 * self._widths[picture].astype(np.int64)
        top = _below(samples["top_word"], self._heights[picture] - np.int64(height - 1))
        left = _below(samples["left_word"], self._widths[picture] - np.int64(width - 1))
        return self._offsets[picture] + top * stride + 3 * left, stride


def _incomplete_key(**given: object) -> str:
    """Return the error for some of seed, epoch and indices without the others."""
    passed = " and ".join(name for name, value in given.items() if value is not None)
    missing = " and ".join(name for name, value in given.items() if value is None)
    return (
        f"got {passed} without {missing}: samples of other batches or epochs would get the same "
        "draws; pass seed, epoch and indices (the numbers of the samples in their dataset), or "
        "none of the three"
    )


def _packed(mixing_set: object) -> PackedPictures:
    if isinstance(mixing_set, PackedPictures):
        return mixing_set
    if mixing_set is None:
        return PackedPictures.pack([])
    if isinstance(mixing_set, Mapping | str) or not isinstance(mixing_set, Iterable):
        raise TypeError(
            f"mixing_set is {type(mixing_set).__name__}; give uint8 pictures (a list, a "
            "PackedPictures), or None"
        )
    return PackedPictures.pack(mixing_set)


class _Mix(NamedTuple):
    """Rows that mix the same way in the same round, and with which pictures and numbers.

    rows, others: (M,) int64; a, b, second_a, second_b, choice: (M, 1, 1, 1) float32.
    choice: 1 or 0 for a condition, or a channel.
    """

    mixing: str
    rows: Tensor
    others: Tensor
    a: Tensor
    b: Tensor
    second_a: Tensor
    second_b: Tensor
    choice: Tensor


class _Work(NamedTuple):
    """What the device has to do.

    made: (operation, first place, count, images, argument) for each operation. crops: first place,
    count, first bytes, strides. start: which picture each row starts from.
    """

    n_pictures: int
    made: list[tuple[int, int, int, Tensor, Tensor]]
    crops: tuple[int, int, Tensor, Tensor]
    start: Tensor
    mixes: list[_Mix]


class _Freight:
    """Arrays that go to a device together, as one piece of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pieces: list[tuple[NDArray[np.uint8], torch.dtype, tuple[int, ...]]] = []

    def add_whole(self, array: NDArray[np.integer]) -> int:
        """Take whole numbers, as int64; return their number in the freight."""
        return self._add(np.ascontiguousarray(array, np.int64), torch.int64)

    def add_real(self, array: NDArray[np.floating]) -> int:
        """Take numbers in the widest float of the device."""
        real = torch_ops.real_type(self._device)
        kind = np.float64 if real == torch.float64 else np.float32
        return self._add(np.ascontiguousarray(array, kind), real)

    def add_single(self, array: NDArray[np.floating] | NDArray[np.integer]) -> int:
        """Take numbers, as float32."""
        return self._add(np.ascontiguousarray(array, np.float32), torch.float32)

    def _add(self, array: NDArray[np.generic], dtype: torch.dtype) -> int:
        self._pieces.append((array.reshape(-1).view(np.uint8), dtype, array.shape))
        return len(self._pieces) - 1

    def ship(self) -> list[Tensor]:
        """Return all that was added, on the device, in its order."""
        # Each piece begins where any type may begin.
        ends = np.cumsum([0, *(-(-len(piece) // 8) * 8 for piece, _, _ in self._pieces)])
        host = torch.empty(int(ends[-1]), dtype=torch.uint8)
        if self._device.type == "cuda":
            host = host.pin_memory()
        memory = host.numpy()
        for (piece, _, _), begin in zip(self._pieces, ends, strict=False):
            memory[begin : begin + len(piece)] = piece
        there = host.to(self._device, non_blocking=True)
        return [
            there[begin : begin + len(piece)].view(dtype).view(shape)
            for (piece, dtype, shape), begin in zip(self._pieces, ends.tolist(), strict=False)
        ]


def _below(words: NDArray[np.uint32], n: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return `philox.below` of many words."""
    return (words * np.asarray(n, np.uint64) >> np.uint64(32)).astype(np.int64)


def _add_arguments(freight: _Freight, code: int, arguments: NDArray[np.float64]) -> int:
    """Add an operation's arguments in the form that it takes them."""
    if code == _ROTATE:
        entries = [rotation_entries(degrees % 360) for degrees in arguments.tolist()]
        return freight.add_real(np.array(entries).reshape(-1, 2))
    if OPERATIONS[code] in ("posterize", "solarize", "translate_x", "translate_y"):
        return freight.add_whole(arguments.astype(np.int64))
    return freight.add_real(arguments)


def _add_mix(
    freight: _Freight,
    code: int,
    rows: NDArray[np.int64],
    others: NDArray[np.int64],
    items: NDArray[np.void],
) -> tuple[str, tuple[int, ...]]:
    """Add what the rows of a round that mix one way need."""
    name = MIXINGS[code]
    choice = items["choice"]
    # A channel, or a condition: `philox.below(choice, 3)` and `philox.coin(choice)`.
    chosen = _below(choice, 3) if name == "swap_channel" else choice >> np.uint32(31)
    numbers = (*(items[each] for each in ("a", "b", "second_a", "second_b")), chosen)
    return name, (
        freight.add_whole(rows),
        freight.add_whole(others),
        *(freight.add_single(each.reshape(-1, 1, 1, 1)) for each in numbers),
    )


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": lambda images, _: torch_ops.autocontrast(images),
    "equalize": lambda images, _: torch_ops.equalize(images),
    **{
        name: getattr(torch_ops, name)
        for name in OPERATIONS
        if name not in ("autocontrast", "equalize")
    },
}


def _made(images: Tensor, pixels: Tensor, work: _Work) -> Tensor:
    """Return all pictures that are mixed: the images, those of the operations, the crops."""
    n, _, height, width = images.shape
    pictures = images.new_empty((work.n_pictures, 3, height, width))
    pictures[:n] = images
    for code, first, count, own, arguments in work.made:
        operation = _OPERATIONS[OPERATIONS[code]]
        pictures[first : first + count] = operation(images.index_select(0, own), arguments)
    first, count, start, stride = work.crops
    if count:
        # All rows of 3 W bytes that begin anywhere: they overlap, and none is copied but by need.
        rows = pixels.as_strided((len(pixels) - 3 * width + 1, 3 * width), (1, 1))
        steps = torch.arange(height, device=images.device)
        places = (start[:, None] + steps * stride[:, None]).flatten()
        crops = rows.index_select(0, places).view(count, height, width, 3)
        pictures[first:] = crops.permute(0, 3, 1, 2)
    return pictures


def _mix(x: Tensor, pictures: Tensor, mix: _Mix) -> None:
    """Mix some rows of x with their pictures, in place."""
    own = x.index_select(0, mix.rows)
    other = pictures.index_select(0, mix.others).float() / 255
    if mix.mixing == "add":
        mixed = (mix.a * (2 * own - 1) + mix.b * (2 * other - 1) + 1) * 0.5
    elif mix.mixing == "multiply":
        mixed = _multiplied(own, other, mix.a, mix.b)
    elif mix.mixing == "screen":
        mixed = 1 - _multiplied(1 - own, 1 - other, mix.a, mix.b)
    elif mix.mixing == "overlay":
        dark = torch.where(mix.choice == 1, own < 0.5, own > 0.5)
        screened = 1 - _multiplied(1 - own, 1 - other, mix.second_a, mix.second_b)
        mixed = torch.where(dark, _multiplied(own, other, mix.a, mix.b), screened)
    elif mix.mixing == "darken_or_lighten":
        mixed = torch.where(mix.choice == 1, own.minimum(other), own.maximum(other))
    else:
        channels = torch.arange(3, device=x.device).view(1, 3, 1, 1)
        mixed = torch.where(channels == mix.choice, other, own)
    x.index_copy_(0, mix.rows, mixed.clamp_(0, 1))


def _multiplied(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return (2x)^a max(2y, 1e-37)^b / 2, by halved exponents that cannot leave float32."""
    root = (2 * x).pow(a / 2) * (2 * y).clamp(min=1e-37).pow(b / 2)
    return root * root / 2
