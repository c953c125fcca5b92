"""PixMix as a transform of one image, for `torchvision.transforms.v2` pipelines and workers."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from pixmix.arguments import check_image, count_of_views, image_key, whole
from pixmix.draws import NO_OPERATION, Plan, draw_plan
from pixmix.fused import NO_IMAGES, mix_planned
from pixmix.mixing import MIXINGS
from pixmix.packed import Layout, PackedImages, too_small
from pixmix.philox import INDEX_LIMIT
from pixmix.settings import PixMixSettings

if TYPE_CHECKING:
    _T = TypeVar("_T", bound=torch.Tensor)
    _Label = TypeVar("_Label")
    _Key = TypeVar("_Key")
    _Rest = TypeVarTuple("_Rest")


AnyImage = Image.Image | torch.Tensor | NDArray[np.uint8]

DTYPES = (torch.float32, torch.uint8)
"""What a transform can return."""


class ImageSequence(Protocol):
    """A sequence of images, opened one at a time: a list, or a dataset without labels."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> AnyImage:
        """Return image `index`, from 0."""


_PLAIN_IMAGES = (torch.Tensor, np.ndarray, Image.Image)
_NOTHING = NO_IMAGES.layout
_MEANS, _DEVIATIONS = np.zeros(3, np.float32), np.ones(3, np.float32)


class PixMix(nn.Module):
    """Mix an image with what operations make of it and with an image of a mixing set.

    Takes a PIL image of mode RGB, a (3, H, W) uint8 tensor or an (H, W, 3) uint8 array, and gives a
    (3, H, W) float32 tensor in [0, 1]: normalise after it, crop and flip before it. Source:
    Hendrycks et al., "PixMix", CVPR 2022, figure 4.

        transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(),
                                PixMix(mixing_set), v2.Normalize([0.5] * 3, [0.5] * 3)])

    Samples follow the rules of torchvision's v2 transforms. An image can be alone, one of several
    arguments, or inside dicts, tuples and lists; everything else is returned unchanged, in the
    same structure. All `tv_tensors.Image` and PIL images of a sample are mixed, with the same
    draws. Only where there are none is the first plain tensor or array taken as the image. A
    `tv_tensors.Image` is returned as one, any other image as a plain tensor.

    Randomness: without a key one number is drawn from torch's generator, so that
    `torch.manual_seed` and the seeds of DataLoader workers do what they do for torchvision's
    transforms. With a key the pixels are a function of it.

    Args:
        mixing_set: a sequence of images, each of one of the three types above and at least as
            large as the images to mix; `mixing_set[i]` is asked for only where a round needs it,
            except that item 0 is checked at once. None or an empty one: every round mixes with
            what an operation makes of the image.
        k: the most rounds of mixing.
        beta: above 0; the larger, the more a mixing keeps of the image.
        severity: of the operations, 0.1 to 10.
        all_ops: draw the operations that overlap ImageNet-C's corruptions, too.
        geometric: draw rotations, shears and translations; without them boxes and masks hold. With
            them, boxes, masks and keypoints in a sample (torchvision's types) cause one warning.
        mixings: names from `pixmix.mixing.MIXINGS`.
        views: how many independent views to return, (views, 3, H, W); None for one, (3, H, W).
        dtype: torch.float32, in [0, 1]; or torch.uint8, 0..255, each value rounded to the nearest
            level, so at most half a level off the float one. Use uint8 where a loader expects it:
            timm's prefetcher casts floats in [0, 1] to 0 and 1.

    Raises:
        TypeError: if the mixing set is no sequence of images, or a number no number.
        ValueError: for a number out of range, or an image of another mode or shape.
    """

    def __init__(
        self,
        mixing_set: ImageSequence | None = None,
        *,
        k: int = 4,
        beta: float = 3.0,
        severity: float = 3.0,
        all_ops: bool = False,
        geometric: bool = True,
        mixings: Sequence[str] = MIXINGS,
        views: int | None = None,
        dtype: torch.dtype = torch.float32,
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
        if mixing_set is not None and (
            isinstance(mixing_set, Mapping)
            or not (hasattr(mixing_set, "__len__") and hasattr(mixing_set, "__getitem__"))
        ):
            raise TypeError(
                f"mixing_set is {type(mixing_set).__name__}; pass a sequence of uint8 images "
                "(a list, a dataset of images without labels, a PackedImages), or None"
            )
        if dtype not in DTYPES:
            raise TypeError(f"dtype is {dtype!r}; use torch.float32 or torch.uint8")
        self.mixing_set = mixing_set
        self.views = count_of_views(views)
        self.dtype = dtype
        self._first_size: tuple[int, int] | None = None
        if mixing_set is not None and len(mixing_set) > 0:
            height, width, _ = _as_array(mixing_set[0], "mixing image 0").shape
            self._first_size = (height, width)
        self._warned = False

    if TYPE_CHECKING:

        @overload
        def __call__(self, image: _T, /, *, key: tuple[int, int, int] | None = None) -> _T: ...

        @overload
        def __call__(
            self,
            image: Image.Image | NDArray[np.uint8],
            /,
            *,
            key: tuple[int, int, int] | None = None,
        ) -> torch.Tensor: ...

        @overload
        def __call__(
            self,
            image: _T,
            label: _Label,
            /,
            *others: *_Rest,
            key: tuple[int, int, int] | None = None,
        ) -> tuple[_T, _Label, *_Rest]: ...

        @overload
        def __call__(
            self,
            image: Image.Image | NDArray[np.uint8],
            label: _Label,
            /,
            *others: *_Rest,
            key: tuple[int, int, int] | None = None,
        ) -> tuple[torch.Tensor, _Label, *_Rest]: ...

        @overload
        def __call__(
            self,
            sample: tuple[_T, *_Rest],
            /,
            *,
            key: tuple[int, int, int] | None = None,
        ) -> tuple[_T, *_Rest]: ...

        @overload
        def __call__(
            self,
            sample: tuple[Image.Image | NDArray[np.uint8], *_Rest],
            /,
            *,
            key: tuple[int, int, int] | None = None,
        ) -> tuple[torch.Tensor, *_Rest]: ...

        @overload
        def __call__(
            self, sample: dict[_Key, Any], /, *, key: tuple[int, int, int] | None = None
        ) -> dict[_Key, Any]: ...

        @overload
        def __call__(
            self, sample: list[Any], /, *, key: tuple[int, int, int] | None = None
        ) -> list[Any]: ...

        # mypy does not see that `*inputs` takes an unpacked TypeVarTuple.
        def __call__(  # type: ignore[misc]
            self, *inputs: Any, key: tuple[int, int, int] | None = None
        ) -> Any:
            """See `forward`; the overloads are for type checkers."""

    def forward(self, *inputs: object, key: tuple[int, int, int] | None = None) -> object:
        """Return the sample with its image mixed; of several arguments, a tuple.

        Args:
            *inputs: the image, with labels and the like beside it, or one sample that holds it.
            key: (seed, epoch, index), whole numbers, the last two below 2^32; None to draw a
                seed from torch's generator.

        Raises:
            TypeError: if there is no image, or it is of another type.
            ValueError: for another mode or shape, or a mixing image that is smaller.
        """
        if not (key is None or (isinstance(key, Sequence) and len(key) == 3)):
            raise TypeError(f"key is {key!r}; pass (seed, epoch, index), three whole numbers")
        if key is None:
            key = (int(torch.empty((), dtype=torch.int64).random_()), 0, 0)
        sample = inputs[0] if len(inputs) == 1 else inputs
        if type(sample) in _PLAIN_IMAGES:
            # Most calls; looking through a sample costs a seventh of a call at 32 pixels.
            return self._mixed(sample, key)
        leaves, structure = tree_flatten(sample)
        images = _find_images(leaves)
        if not images:
            raise TypeError(
                f"found no image in {type(sample).__name__}; use an RGB PIL image, a (3, H, W) "
                "uint8 tensor or an (H, W, 3) uint8 array"
            )
        if self.settings.geometric and not self._warned and len(leaves) > 1:
            self._warn_of(_annotation_types(leaves))
        for i in images:
            leaves[i] = _like_input(self._mixed(leaves[i], key), leaves[i])
        return tree_unflatten(leaves, structure)

    def _warn_of(self, annotations: list[str]) -> None:
        """Warn, once, that annotations do not follow the image where operations move it."""
        if annotations:
            self._warned = True
            warnings.warn(
                f"{' and '.join(annotations)} stay in place while PixMix rotates, shears and "
                "translates the image; use PixMix(..., geometric=False) for samples with them",
                stacklevel=2,
            )

    def _mixed(self, given: object, key: tuple[int, int, int]) -> torch.Tensor:
        """Return an image mixed by a key."""
        image = _as_array(given, "the image")
        seed, epoch, index = key
        index = whole("index", index, 0, INDEX_LIMIT - 1)
        size = (image.shape[0], image.shape[1])
        first = self._first_size
        if first is not None and (first[0] < size[0] or first[1] < size[1]):
            # Others are looked at where they are drawn; this one tells at the first image.
            raise ValueError(too_small(0, *first, *size))
        n_views = 1 if self.views is None else self.views
        plan = draw_plan(
            np.array([index], np.int64),
            seed=seed,
            epoch=epoch,
            settings=self.settings,
            size=size,
            source_size=size,
            flip=False,
            views=n_views,
            n_mixing_images=0 if self.mixing_set is None else len(self.mixing_set),
        )
        result = np.empty((n_views, 3, *size), np.float32)
        mix_planned(
            image[None],
            self._mixing_images_of(plan, size),
            plan,
            result,
            n_views=n_views,
            padding=0,
            means=_MEANS,
            deviations=_DEVIATIONS,
            n_threads=1,
        )
        mixed = torch.from_numpy(result[0] if self.views is None else result)
        return mixed if self.dtype == torch.float32 else mixed.mul_(255).round_().to(torch.uint8)

    def _mixing_images_of(self, plan: Plan, size: tuple[int, int]) -> Layout:
        """Return the mixing images that the views need, and let the plan count in them."""
        if self.mixing_set is None:
            return _NOTHING
        samples, operations = plan.samples, plan.rounds["operation"].tolist()
        images: list[NDArray[np.uint8]] = []
        for view, n_rounds in enumerate(samples["rounds"].tolist()):
            if NO_OPERATION not in operations[view][:n_rounds]:
                continue
            i = int(samples["mixing_image"][view])
            image = _as_array(self.mixing_set[i], f"mixing image {i}")
            if image.shape[0] < size[0] or image.shape[1] < size[1]:
                raise ValueError(too_small(i, image.shape[0], image.shape[1], *size))
            samples["mixing_image"][view] = len(images)
            images.append(image)
        if len(images) == 1:
            # What `pack` does at leisure: most calls come here.
            height, width, _ = images[0].shape
            return Layout(
                images[0].reshape(-1),
                np.zeros(1, np.int64),
                np.array([height], np.int32),
                np.array([width], np.int32),
            )
        return PackedImages.pack(images).layout if images else _NOTHING

    def extra_repr(self) -> str:
        """Return the arguments, the mixing set by its length."""
        if self.mixing_set is None:
            mixing_set = "no mixing set"
        else:
            mixing_set = f"{len(self.mixing_set)} mixing images"
        return f"{mixing_set}, {self.settings}, views={self.views}, dtype={self.dtype}"


def _as_array(image: object, name: str) -> NDArray[np.uint8]:
    """Return an image as an (H, W, 3) uint8 array, contiguous and writeable."""
    try:
        return check_image(_unpacked(image))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _unpacked(image: object) -> object:
    if isinstance(image, tuple | list | Mapping):
        raise TypeError(
            f"expected an image, got a {type(image).__name__}; a mixing set has images without "
            f"labels: use [sample[{image_key(image)!r}] for sample in dataset], or "
            "open_mixing_set(folder, side)"
        )
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(
                f"an image of mode {image.mode} is not RGB; convert it with image.convert('RGB')"
            )
        return np.array(image)
    if isinstance(image, torch.Tensor):
        if image.dtype != torch.uint8:
            raise TypeError(
                f"a tensor image holds uint8, 0..255, not {image.dtype}; use PixMix before "
                "v2.ToDtype, or v2.ToDtype(torch.uint8, scale=True) before it"
            )
        if image.device.type != "cpu":
            raise TypeError(
                f"the tensor is on {image.device}; use BatchPixMix there, or tensor.cpu()"
            )
        if image.ndim == 4 and image.shape[1] == 3:
            raise ValueError(
                f"a tensor image has shape (3, H, W), not {tuple(image.shape)}; pass one "
                "image at a time, or a batch to BatchPixMix"
            )
        if image.ndim == 3 and 0 in image.shape:
            raise ValueError(
                f"a tensor image has height and width of at least 1, not {tuple(image.shape)}; "
                "leave empty ones out"
            )
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"a tensor image has shape (3, H, W), not {tuple(image.shape)}; "
                "make three channels of one with v2.RGB()"
            )
        return image.detach().permute(1, 2, 0).contiguous().numpy()
    return image


# --- Which parts of a sample are images ---------------------------------------------------------
# By the rules of torchvision's v2 transforms: `Transform._needs_transform_list` in
# torchvision/transforms/v2/_transform.py, 0.29.

_ANNOTATIONS = ("BoundingBoxes", "KeyPoints", "Mask")
"""Torchvision's types of positions in an image."""


def _tv_tensors() -> ModuleType | None:
    """Return torchvision's module of tensor types, or None where no such tensor can exist.

    This package does not need torchvision, and does not import it.
    """
    return sys.modules.get("torchvision.tv_tensors")


def _find_images(leaves: list[Any]) -> list[int]:
    """Return the indices of the leaves of a sample that are images.

    All images of torchvision's types and of Pillow's; where there are none, the first plain tensor
    or array.

    Args:
        leaves: the values of a sample, depth first.
    """
    types = _tv_tensors()
    explicit = (Image.Image,) if types is None else (Image.Image, types.Image, types.Video)
    found = [i for i, leaf in enumerate(leaves) if isinstance(leaf, explicit)]
    if found:
        return found
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, np.ndarray) or (
            isinstance(leaf, torch.Tensor) and not (types and isinstance(leaf, types.TVTensor))
        ):
            return [i]
    return []


def _annotation_types(leaves: list[Any]) -> list[str]:
    """Return the names of torchvision's types of annotations that are among the leaves."""
    types = _tv_tensors()
    if types is None:
        return []
    # Older versions have no KeyPoints.
    known = {name: getattr(types, name) for name in _ANNOTATIONS if hasattr(types, name)}
    return [name for name, kind in known.items() if any(isinstance(leaf, kind) for leaf in leaves)]


def _like_input(mixed: torch.Tensor, image: object) -> torch.Tensor:
    """Return a tensor as torchvision's type where the image it was made of has such a type."""
    types = _tv_tensors()
    if types is not None and isinstance(image, types.TVTensor):
        wrapped: torch.Tensor = types.wrap(mixed, like=image)
        return wrapped
    return mixed
