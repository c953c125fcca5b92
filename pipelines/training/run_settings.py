"""What a training depends on, for its run.json."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import PipelineError
from pipelines.loading.loader import TrainLoader
from pipelines.provenance.run_record import (
    DataFacts,
    MixingFacts,
    Settings,
    WeightsFacts,
    read_run_record,
)
from pipelines.shards.index import ShardSet
from pipelines.system.files import file_sha256

if TYPE_CHECKING:
    from pipelines.training.train import Training


def settings_of(
    training: "Training", loader: TrainLoader, *, pretrained: str | None, resumed: bool
) -> Settings:
    """Return recipe, data, mixing set and first weights of a training, with their hashes.

    Args:
        training: what is trained.
        loader: of its images, which has its mixing set.
        pretrained: name of torchvision's weights that it began with.
        resumed: whether it goes on from a checkpoint; then run.json tells what it began with, and
            not the command that resumes it.

    Raises:
        OSError: if the file of the first weights cannot be read.
    """
    sets = {"train": training.train, "validation": training.validation, "test": training.test}
    return Settings(
        recipe=training.recipe.to_json(),
        data={use: _data(each.shards) for use, each in sets.items() if each is not None},
        mixing_set=_mixing_set(training, loader.mixing_fingerprint),
        weights=_weights(training, pretrained, resumed=resumed),
    )


def _data(shards: ShardSet) -> DataFacts:
    return DataFacts(
        name=shards.name, location=shards.location, samples=len(shards), sha256=shards.hash
    )


def _mixing_set(training: "Training", fingerprint: str | None) -> MixingFacts | None:
    if fingerprint is None:
        return None
    given = training.mixing_set
    several = given if isinstance(given, list | tuple) else [given]
    locations = tuple(str(each) for each in several if isinstance(each, str | Path))
    return MixingFacts(locations=locations, fingerprint=fingerprint)


def _weights(training: "Training", pretrained: str | None, *, resumed: bool) -> WeightsFacts | None:
    if pretrained is not None:
        name = f"torchvision {training.recipe.model} {pretrained}"
        return WeightsFacts(location=name, sha256=None)
    if resumed:
        return _first_weights(training.out)
    if training.weights is None:
        return None
    return WeightsFacts(location=str(training.weights), sha256=file_sha256(training.weights))


def _first_weights(out: Path) -> WeightsFacts | None:
    """Return the weights that a run began with, from its run.json."""
    try:
        record = read_run_record(out)
    except (PipelineError, OSError):
        # It is renamed, or ends the run, where the session is written into it.
        record = None
    return (
        WeightsFacts(location="unknown", sha256=None)
        if record is None
        else (record.settings.weights)
    )
