"""Which parts of a sample are images, by the rules of torchvision's v2 transforms.

Source: `Transform._needs_transform_list`, torchvision/transforms/v2/_transform.py, 0.29.
"""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

ANNOTATIONS = ("BoundingBoxes", "KeyPoints", "Mask")
"""Torchvision's types of positions in an image."""


def _tv_tensors() -> ModuleType | None:
    """Return torchvision's module of tensor types, or None where no such tensor can exist.

    This package does not need torchvision, and does not import it.
    """
    return sys.modules.get("torchvision.tv_tensors")


def find_images(leaves: list[Any]) -> list[int]:
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


def annotation_types(leaves: list[Any]) -> list[str]:
    """Return the names of torchvision's types of annotations that are among the leaves."""
    types = _tv_tensors()
    if types is None:
        return []
    # Older versions have no KeyPoints.
    known = {name: getattr(types, name) for name in ANNOTATIONS if hasattr(types, name)}
    return [name for name, kind in known.items() if any(isinstance(leaf, kind) for leaf in leaves)]


def like_input(mixed: torch.Tensor, image: object) -> torch.Tensor:
    """Return a tensor as torchvision's type where the image it was made of has such a type."""
    types = _tv_tensors()
    if types is not None and isinstance(image, types.TVTensor):
        wrapped: torch.Tensor = types.wrap(mixed, like=image)
        return wrapped
    return mixed
