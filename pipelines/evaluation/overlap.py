"""Whether a network was trained with operations that overlap the corruptions of C."""

from collections.abc import Mapping
from typing import Any

from pixmix import operations

OPERATIONS = tuple(row.name for row in operations.OPERATIONS if row.overlaps_c)
"""Drawn by PixMix and AugMix where all operations are asked for, and always by TrivialAugment."""


def overlapping_operations(said: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the operations of a network's training that overlap C's corruptions.

    Args:
        said: what a checkpoint says of its network; "recipe" is its training's.

    Returns:
        `OPERATIONS`, or nothing where the training did not draw them or nobody says it.
    """
    recipe = said.get("recipe")
    if not isinstance(recipe, Mapping):
        return ()
    augment = recipe.get("augment")
    pixmix = recipe.get("pixmix")
    all_ops = {
        "pixmix": isinstance(pixmix, Mapping) and pixmix.get("all_ops") is True,
        # Recipes without this field are of versions that always drew them.
        "augmix": recipe.get("augmix_all_ops", True) is True,
        "trivialaugment": True,
    }
    return OPERATIONS if isinstance(augment, str) and all_ops.get(augment, False) else ()
