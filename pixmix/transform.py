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

from pixmix.draws import NO_OPERATION, Plan, draw_plan
from pixmix.fused import NO_IMAGES, mix_planned
from pixmix.images import Layout, PackedImages, check_image, find_image_key, too_small
from pixmix.mixing import MIXINGS
from pixmix.settings import INDEX_LIMIT, PixMixSettings, check_integer, check_views

if TYPE_CHECKING:
    _T = TypeVar("_T", bound=torch.Tensor)
    _Label = TypeVar("_Label")
    _Key = TypeVar("_Key")
    _Rest = TypeVarTuple("_Rest")


AnyImage = Image.Image | torch.Tensor | NDArray[np.uint8]

DTYPES = (torch.float32, torch.uint8)
"""The output types of `PixMix`."""


class ImageSequence(Protocol):
    """A sequence of images, such as a list or a dataset without labels."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> AnyImage:
        """Return an image by its index, from 0."""


_PLAIN_IMAGES = (torch.Tensor, np.ndarray, Image.Image)
_NO_MIXING_IMAGES = NO_IMAGES.layout
_MEANS, _DEVIATIONS = np.zeros(3, np.float32), np.ones(3, np.float32)


class PixMix(nn.Module):
    """Mix an image with augmented copies of itself and with images of a mixing set.

    The input is an RGB PIL image, a (3, H, W) uint8 tensor or an (H, W, 3) uint8 array; the output
    is a (3, H, W) float32 tensor in [0, 1]. Crop and flip before it, normalize after it. Source:
    Hendrycks et al., "PixMix", CVPR 2022, figure 4.

    Example:
        Augment CIFAR images in a torchvision pipeline::

            transform = v2.Compose([
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                PixMix(open_mixing_set("fractals", 32)),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ])
            dataset = CIFAR10("data", transform=transform)

    Samples follow the rules of torchvision's v2 transforms. The image may be passed alone, as one
    of several arguments, or inside dicts, tuples and lists; everything else is returned unchanged
    in the same structure. All PIL images and ``tv_tensors.Image`` in a sample are mixed with the
    same draws; only if there are none is the first plain tensor or array taken as the image. A
    ``tv_tensors.Image`` stays one; every other image becomes a plain tensor.

    Without a key, each call draws a seed from torch's global generator, so that
    ``torch.manual_seed`` and DataLoader's worker seeds apply as in torchvision. With a key, the
    output is a function of the key.

    Args:
        mixing_set: sequence of images of the three input types, each at least as large as the
            images to mix. ``mixing_set[i]`` is loaded only when a round needs it, except for item
            0, which is checked at once. None or an empty sequence makes every round mix with an
            augmented copy of the image.
        k: maximum number of mixing rounds, 0 or more.
        beta: mixing strength, 0.001 or more; the larger, the more a round keeps of the image.
        severity: maximum level of the operations, 0.1 to 10.
        all_ops: whether to also draw the operations that overlap corruptions of ImageNet-C.
        geometric: whether to draw rotations, shears and translations. Without them, boxes, masks
            and keypoints remain valid; with them, torchvision's types for these cause one warning.
        mixings: names from `pixmix.mixing.MIXINGS`.
        views: number of independent views to return, as (views, 3, H, W); None for (3, H, W).
        dtype: torch.float32 for [0, 1], or torch.uint8 for 0..255, rounded to the nearest level.
            Use uint8 with loaders that expect it, such as timm's prefetcher, which would truncate
            floats in [0, 1] to 0 and 1.

    Raises:
        TypeError: if the mixing set is not a sequence of images, or a parameter has another type.
        ValueError: if a parameter is out of range, or item 0 has another mode or shape.
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
        self.views = check_views(views)
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
        r"""Mix the image of a sample.

        Args:
            \*inputs: an image; or a sample (dict, tuple or list) that contains one; or several
                arguments, such as an image and its label.
            key: (seed, epoch, index), integers, the last two below 2^32; None to draw a seed
                from torch's generator.

        Returns:
            The mixed image, or the sample with its image replaced; a tuple for several arguments.

        Raises:
            TypeError: if the sample does not contain an image, or the image has another type.
            ValueError: if the image has another mode or shape, or a mixing image is smaller.
        """
        if not (key is None or (isinstance(key, Sequence) and len(key) == 3)):
            raise TypeError(f"key is {key!r}; pass (seed, epoch, index), three integers")
        if key is None:
            key = (int(torch.empty((), dtype=torch.int64).random_()), 0, 0)
        sample = inputs[0] if len(inputs) == 1 else inputs
        if type(sample) in _PLAIN_IMAGES:
            # The common case: searching a sample for its image takes a seventh of a call at 32 px.
            return self._mix(sample, key)
        leaves, structure = tree_flatten(sample)
        images = _find_images(leaves)
        if not images:
            raise TypeError(
                f"found no image in {type(sample).__name__}; use an RGB PIL image, a (3, H, W) "
                "uint8 tensor or an (H, W, 3) uint8 array"
            )
        if self.settings.geometric and not self._warned and len(leaves) > 1:
            self._warn_about(_annotation_types(leaves))
        for i in images:
            leaves[i] = _like_input(self._mix(leaves[i], key), leaves[i])
        return tree_unflatten(leaves, structure)

    def _warn_about(self, annotations: list[str]) -> None:
        """Warn once that annotations do not move with the image."""
        if annotations:
            self._warned = True
            warnings.warn(
                f"{' and '.join(annotations)} stay in place while PixMix rotates, shears and "
                "translates the image; use PixMix(..., geometric=False) for samples with them",
                stacklevel=2,
            )

    def _mix(self, source: object, key: tuple[int, int, int]) -> torch.Tensor:
        """Mix an image by a key."""
        image = _as_array(source, "the image")
        seed, epoch, index = key
        index = check_integer("index", index, 0, INDEX_LIMIT - 1)
        size = (image.shape[0], image.shape[1])
        first = self._first_size
        if first is not None and (first[0] < size[0] or first[1] < size[1]):
            # Other mixing images are checked when drawn; item 0 with the first image.
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
            self._load_mixing_images(plan, size),
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

    def _load_mixing_images(self, plan: Plan, size: tuple[int, int]) -> Layout:
        """Load the mixing images that the views need; the plan's indices become those in them."""
        if self.mixing_set is None:
            return _NO_MIXING_IMAGES
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
            # The common case, faster than `PackedImages.pack`.
            height, width, _ = images[0].shape
            return Layout(
                images[0].reshape(-1),
                np.zeros(1, np.int64),
                np.array([height], np.int32),
                np.array([width], np.int32),
            )
        return PackedImages.pack(images).layout if images else _NO_MIXING_IMAGES

    def extra_repr(self) -> str:
        """Return the arguments, with the length of the mixing set."""
        if self.mixing_set is None:
            mixing_set = "no mixing set"
        else:
            mixing_set = f"{len(self.mixing_set)} mixing images"
        return f"{mixing_set}, {self.settings}, views={self.views}, dtype={self.dtype}"


def _as_array(image: object, name: str) -> NDArray[np.uint8]:
    """Return an image as an (H, W, 3) uint8 array, contiguous and writeable."""
    try:
        return check_image(_to_array(image))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _to_array(image: object) -> object:
    """Convert a PIL image or a tensor to an array; return anything else unchanged."""
    if isinstance(image, tuple | list | Mapping):
        raise TypeError(
            f"expected an image, got a {type(image).__name__}; a mixing set has images without "
            f"labels: use [sample[{find_image_key(image)!r}] for sample in dataset], or "
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
                f"a tensor image must be uint8, 0..255, not {image.dtype}; use PixMix before "
                "v2.ToDtype, or v2.ToDtype(torch.uint8, scale=True) before it"
            )
        if image.device.type != "cpu":
            raise TypeError(
                f"the tensor is on {image.device}; use BatchPixMix there, or tensor.cpu()"
            )
        if image.ndim == 4 and image.shape[1] == 3:
            raise ValueError(
                f"a tensor image must have shape (3, H, W), not {tuple(image.shape)}; pass one "
                "image at a time, or a batch to BatchPixMix"
            )
        if image.ndim == 3 and 0 in image.shape:
            raise ValueError(
                f"a tensor image must have height and width of at least 1, not "
                f"{tuple(image.shape)}; leave out empty images"
            )
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"a tensor image must have shape (3, H, W), not {tuple(image.shape)}; "
                "convert grayscale images with v2.RGB()"
            )
        return image.detach().permute(1, 2, 0).contiguous().numpy()
    return image


# --- The images of a sample ---------------------------------------------------------------------
# These are the rules of torchvision's v2 transforms: `Transform._needs_transform_list` in
# torchvision/transforms/v2/_transform.py, 0.29.

_ANNOTATIONS = ("BoundingBoxes", "KeyPoints", "Mask")
"""torchvision's types for positions in an image."""


def _tv_tensors() -> ModuleType | None:
    """Return torchvision's module of tensor types, or None if it is not imported.

    This package does not require torchvision and never imports it.
    """
    return sys.modules.get("torchvision.tv_tensors")


def _find_images(leaves: list[Any]) -> list[int]:
    """Return the positions of the images among the leaves of a sample.

    These are all images of torchvision's and PIL's types; if there are none, the first plain tensor
    or array.
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
    """Return the names of torchvision's annotation types among the leaves."""
    types = _tv_tensors()
    if types is None:
        return []
    # KeyPoints is missing in older versions.
    known = {name: getattr(types, name) for name in _ANNOTATIONS if hasattr(types, name)}
    return [name for name, kind in known.items() if any(isinstance(leaf, kind) for leaf in leaves)]


def _like_input(mixed: torch.Tensor, image: object) -> torch.Tensor:
    """Wrap a tensor in torchvision's type if the input image has one."""
    types = _tv_tensors()
    if types is not None and isinstance(image, types.TVTensor):
        wrapped: torch.Tensor = types.wrap(mixed, like=image)
        return wrapped
    return mixed
