"""What is told of networks' inputs beside their checkpoints, and in words what was made of it."""

from collections.abc import Mapping
from typing import Any

from pipelines.errors import PipelineError
from pipelines.evaluation.request import Evaluation

_OF_VIEW = ("image_size", "evaluation_resize")
_OPTIONS = {"mean": "--mean", "std": "--std", "image_size": "--image-size",
            "evaluation_resize": "--resize"}  # fmt: skip


def add_told(
    said: Mapping[str, Mapping[str, Any]], told: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return what checkpoints say of their networks, and what is told where they do not say it.

    What a checkpoint says stands. One that says "crop" says "image_size" and "evaluation_resize".

    Args:
        said: by checkpoint.
        told: of "mean", "std", "image_size" and "evaluation_resize" those that are.

    Raises:
        PipelineError: if something is told that each of them says, and one says otherwise.
    """
    added = {path: dict(each) for path, each in said.items()}
    for name, value in told.items():
        by = "crop" if name in _OF_VIEW else name
        for path, each in said.items():
            if by not in each:
                added[path].update({name: value, **({"crop": "resized"} if by == "crop" else {})})
        if all(by in each for each in said.values()):
            for path, each in said.items():
                if each.get(name) != value:
                    own = name if each.get(name) else by
                    raise PipelineError(
                        f"{path} says of its network that {own} is {each[own]!r}, which stands; "
                        f"leave {_OPTIONS[name]} {value} out"
                    )
    return added


def input_of(evaluation: Evaluation, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return how pictures become a network's, as plain JSON values.

    "mean" and "std", for 0..1; "image_size", the side of its pictures; "resize", their shorter side
    before the centre is cut out, or None: they are as they are; "guessed": which of these nobody
    said.

    said: what is said of the network, with what was told.
    """
    classifier, data = evaluation.classifier, evaluation.data
    guessed = [name for name in ("mean", "std") if name not in said]
    return {
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "image_size": data.side,
        "resize": None if data.view is None else data.view.resize,
        "guessed": guessed if "crop" in said else [*guessed, "image_size", "resize"],
    }


def in_words(found: Mapping[str, Any]) -> str:
    """Return what `input_of` returns as a line."""
    mean, std = (" ".join(f"{each:g}" for each in found[name]) for name in ("mean", "std"))
    size = f"{found['image_size']}x{found['image_size']}"
    view = (
        f"pictures of {size} as they are"
        if found["resize"] is None
        else f"shorter side resized to {found['resize']}, centre of {size}"
    )
    options = ", ".join(f"--{name.replace('_', '-')}" for name in found["guessed"])
    guessed = f"; guessed without {options}" if options else ""
    return f"mean {mean}, std {std}, {view}{guessed}"
