"""PixMix as a transform of one picture, for `torchvision.transforms.v2` pipelines and workers."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from pixmix.arguments import count_of_views, names_of_mixings, whole
from pixmix.draws import NO_OPERATION, Plan, draw_plan
from pixmix.fused import NO_PICTURES, mix_planned
from pixmix.packed import Layout, PackedPictures, too_small
from pixmix.philox import INDEX_LIMIT
from pixmix.pictures import check_picture
from pixmix.settings import PixMixSettings

Picture = Image.Image | torch.Tensor | NDArray[np.uint8]

_NOTHING = NO_PICTURES.layout
_MEANS, _DEVIATIONS = np.zeros(3, np.float32), np.ones(3, np.float32)


class PixMix(nn.Module):
    """Mix a picture with what operations make of it and with a picture of a mixing set.

    Takes a PIL image of mode RGB, a (3, H, W) uint8 tensor or an (H, W, 3) uint8 array, and gives a
    (3, H, W) float32 tensor in [0, 1]: normalise after it, crop and flip before it. Labels and
    whatever else comes along are handed on as they are. Source: Hendrycks et al., "PixMix",
    CVPR 2022, figure 4.

        transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(),
                                PixMix(mixing_set), v2.Normalize([0.5] * 3, [0.5] * 3)])

    Randomness: without a key one number is drawn from torch's generator, so that
    `torch.manual_seed` and the seeds of DataLoader workers do what they do for torchvision's
    transforms. With a key the pixels are a function of it.

    Args:
        mixing_set: a sequence of pictures, each of one of the three types above and at least as
            large as the pictures to mix; `mixing_set[i]` is asked for only where a round needs it.
            None or an empty one: every round mixes with what an operation makes of the picture.
        k: the most rounds of mixing.
        beta: above 0; the larger, the more a mixing keeps of the picture.
        severity: of the operations, 0.1 to 10.
        all_ops: draw color, contrast, brightness and sharpness too (they overlap ImageNet-C).
        geometric: draw rotations, shears and translations; without them boxes and masks hold.
        mixings: names from `pixmix.settings.MIXINGS`.
        views: how many independent views to give, (views, 3, H, W); None for one, (3, H, W).

    Raises:
        TypeError: if the mixing set is no sequence, or a number no number.
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        mixing_set: Sequence[Picture] | PackedPictures | None = None,
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
        if mixing_set is not None and (
            isinstance(mixing_set, Mapping)
            or not (hasattr(mixing_set, "__len__") and hasattr(mixing_set, "__getitem__"))
        ):
            raise TypeError(
                f"mixing_set is {type(mixing_set).__name__}; give a sequence of uint8 pictures "
                "(a list, a dataset of pictures without labels, a PackedPictures), or None"
            )
        self.mixing_set = mixing_set
        self.views = count_of_views(views)

    def forward(
        self, picture: Picture, *others: object, key: tuple[int, int, int] | None = None
    ) -> torch.Tensor | tuple[object, ...]:
        """Return the picture mixed; with others, a tuple of it and them.

        Args:
            picture: RGB of 8 bits a channel, in one of the three types.
            *others: labels and the like.
            key: (seed, epoch, index), whole numbers, the last two below 2^32; None to draw a
                seed from torch's generator.

        Raises:
            TypeError: if it is of another type.
            ValueError: for another mode or shape, or a mixing picture that is smaller.
        """
        image = _as_array(picture, "the picture")
        if key is None:
            key = (int(torch.empty((), dtype=torch.int64).random_()), 0, 0)
        if not (isinstance(key, Sequence) and len(key) == 3):
            raise TypeError(f"key is {key!r}; give (seed, epoch, index), three whole numbers")
        seed, epoch, index = key
        index = whole("index", index, 0, INDEX_LIMIT - 1)
        size = (image.shape[0], image.shape[1])
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
            n_pictures=0 if self.mixing_set is None else len(self.mixing_set),
        )
        result = np.empty((n_views, 3, *size), np.float32)
        mix_planned(
            image[None],
            self._pictures_of(plan, size),
            plan,
            result,
            n_views=n_views,
            padding=0,
            means=_MEANS,
            deviations=_DEVIATIONS,
            n_threads=1,
        )
        mixed = torch.from_numpy(result[0] if self.views is None else result)
        return (mixed, *others) if others else mixed

    def _pictures_of(self, plan: Plan, size: tuple[int, int]) -> Layout:
        """Return the mixing pictures that the views need, and let the plan count in them."""
        if self.mixing_set is None:
            return _NOTHING
        samples, operations = plan.samples, plan.rounds["operation"].tolist()
        pictures: list[NDArray[np.uint8]] = []
        for view, n_rounds in enumerate(samples["rounds"].tolist()):
            if NO_OPERATION not in operations[view][:n_rounds]:
                continue
            i = int(samples["picture"][view])
            picture = _as_array(self.mixing_set[i], f"mixing picture {i}")
            if picture.shape[0] < size[0] or picture.shape[1] < size[1]:
                raise ValueError(too_small(i, picture.shape[0], picture.shape[1], *size))
            samples["picture"][view] = len(pictures)
            pictures.append(picture)
        if len(pictures) == 1:
            # What `pack` does at leisure: most calls come here.
            height, width, _ = pictures[0].shape
            return Layout(
                pictures[0].reshape(-1),
                np.zeros(1, np.int64),
                np.array([height], np.int32),
                np.array([width], np.int32),
            )
        return PackedPictures.pack(pictures).layout if pictures else _NOTHING

    def extra_repr(self) -> str:
        """Return the arguments, the mixing set by its length."""
        if self.mixing_set is None:
            mixing_set = "no mixing set"
        else:
            mixing_set = f"{len(self.mixing_set)} mixing pictures"
        settings = self.settings
        return (
            f"{mixing_set}, k={settings.k}, beta={settings.beta:g}, "
            f"severity={settings.severity:g}, all_ops={settings.all_ops}, "
            f"geometric={settings.geometric}, mixings={settings.mixings}, views={self.views}"
        )


def _as_array(picture: object, name: str) -> NDArray[np.uint8]:
    """Return a picture as an (H, W, 3) uint8 array, contiguous and writeable."""
    try:
        return check_picture(_unpacked(picture))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _unpacked(picture: object) -> object:
    if isinstance(picture, Image.Image):
        if picture.mode != "RGB":
            raise ValueError(
                f"an image of mode {picture.mode} is not RGB; convert it with image.convert('RGB')"
            )
        return np.array(picture)
    if isinstance(picture, torch.Tensor):
        if picture.dtype != torch.uint8:
            raise TypeError(
                f"a tensor picture holds uint8, 0..255, not {picture.dtype}; use PixMix before "
                "v2.ToDtype, or v2.ToDtype(torch.uint8, scale=True) before it"
            )
        if picture.device.type != "cpu":
            raise TypeError(
                f"the tensor is on {picture.device}; use BatchPixMix there, or tensor.cpu()"
            )
        if picture.ndim == 4 and picture.shape[1] == 3:
            raise ValueError(
                f"a tensor picture has shape (3, H, W), not {tuple(picture.shape)}; give one "
                "picture at a time, or a batch to BatchPixMix"
            )
        if picture.ndim == 3 and 0 in picture.shape:
            raise ValueError(
                f"a tensor picture has height and width of at least 1, not {tuple(picture.shape)}; "
                "leave empty ones out"
            )
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise ValueError(
                f"a tensor picture has shape (3, H, W), not {tuple(picture.shape)}; "
                "make three channels of one with v2.RGB()"
            )
        return picture.detach().permute(1, 2, 0).contiguous().numpy()
    return picture
