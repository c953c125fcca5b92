"""The genome of a fractal, from a file of its own or from the records of a set."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractals import Genome
from pipelines.errors import PipelineError
from pipelines.shards.format import FORMAT
from pipelines.system.files import open_regular, read_json, read_regular

SQUARE = (1, 1)

_LARGEST_FILE = 2**28
_LONGEST_LINE = 2**24
"""Bytes of a record of a set; a genome has some thousands."""

_REMEDY = "name a genome, or a set of pixmix-gen fractals"


@dataclass(frozen=True, kw_only=True)
class ReadGenome:
    """A genome, and the height and width of its picture in its set; of a file a square's."""

    genome: Genome
    shape: tuple[int, int]


def read_genome(place: Path, index: int | None) -> ReadGenome:
    """Read a genome from a file of its own or from the records of a set.

    Args:
        place: JSON as `Genome.to_json` gives it, or a folder of pixmix-gen fractals.
        index: which picture of a folder; None for a file.

    Raises:
        PipelineError: if there is none.
        OSError: if it cannot be read.
    """
    if place.is_dir():
        if index is None:
            raise PipelineError(f"{place} has many pictures; name one by --index")
        manifest = _manifest(place)
        _refuse_shards(manifest, place)
        record = _record(place / "metadata.jsonl", index)
        genome = _of_record(record, f"picture {index} of {place}", manifest.get("kind"))
        return ReadGenome(genome=genome, shape=_shape(manifest))
    document = read_json(read_regular(place, max_bytes=_LARGEST_FILE), Any, str(place), _REMEDY)
    _refuse_shards(document, place)
    if isinstance(document, dict) and {"kind", "status", "settings"} <= document.keys():
        raise PipelineError(
            f"{place} is the manifest of a set and no genome; name its folder, and a picture by "
            "--index"
        )
    if index is not None:
        raise PipelineError(f"{place} is one genome; leave --index out")
    return ReadGenome(genome=_of_record(document, str(place), None), shape=SQUARE)


def _refuse_shards(manifest: Any, place: Path) -> None:  # noqa: ANN401
    if isinstance(manifest, dict) and manifest.get("format") == FORMAT:
        raise PipelineError(
            f"{place} is a set of shards; name the set of pixmix-gen fractals that it was made of, "
            "or a genome's file"
        )


def _manifest(folder: Path) -> dict[str, Any]:
    """Return what is known of a set, or nothing where its folder has no manifest."""
    path = folder / "manifest.json"
    remedy = "name another set"
    try:
        content = read_regular(path, max_bytes=_LARGEST_FILE)
    except FileNotFoundError:
        return {}
    document = read_json(content, Any, str(path), remedy)
    return document if isinstance(document, dict) else {}


def _shape(manifest: dict[str, Any]) -> tuple[int, int]:
    settings = manifest.get("settings")
    if isinstance(settings, dict):
        height, width = settings.get("height"), settings.get("width")
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            return height, width
    return SQUARE


def _record(path: Path, index: int) -> Any:  # noqa: ANN401
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise PipelineError(
            f"{path} is not there: {path.parent} is no finished set of pixmix-gen fractals; name "
            "one, or a genome's file"
        ) from error
    with file:
        for number in range(index + 1):
            line = file.readline(_LONGEST_LINE + 1)
            if not line:
                break
            if len(line) > _LONGEST_LINE:
                raise PipelineError(
                    f"{path}, line {number + 1} has more than {_LONGEST_LINE:,} bytes, which no "
                    f"genome has; {_REMEDY}"
                )
    if not line:
        raise PipelineError(f"{path} has no picture {index}; its pictures are counted from 0")
    return read_json(line, Any, f"{path}, line {index + 1}", _REMEDY)


def _of_record(document: Any, where: str, kind: object) -> Genome:  # noqa: ANN401
    if isinstance(document, dict) and "genome" in document:
        document = document["genome"]
    elif kind not in (None, "fractals"):
        raise PipelineError(
            f"{where} is of kind {json.dumps(kind)} and has no genome, as fractals have; give a "
            "set of pixmix-gen fractals"
        )
    if not isinstance(document, dict):
        raise PipelineError(f"{where} holds no genome; give one of a set of pixmix-gen fractals")
    try:
        return Genome.from_json(document)
    except ValueError as error:
        raise PipelineError(f"{where}: {error}") from error
    except RecursionError as error:
        raise PipelineError(f"{where} holds no genome (brackets in brackets); {_REMEDY}") from error
