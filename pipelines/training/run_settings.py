"""What a training depends on, for its run.json."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.loading.cursors import TrainLoader
from pipelines.provenance.run_record import DataFacts, MixingFacts, Settings, WeightsFacts
from pipelines.shards.files import file_sha256
from pipelines.shards.index import ShardSet

if TYPE_CHECKING:
    from pipelines.training.train import Training


def settings_of(training: "Training", loader: TrainLoader) -> Settings:
    """Return recipe, data, mixing set and first weights of a training, with their hashes.

    Args:
        training: what is trained.
        loader: of its images, which has its mixing set.

    Raises:
        OSError: if the file of the first weights cannot be read.
    """
    sets = {"train": training.train, "validation": training.validation, "test": training.test}
    return Settings(
        recipe=training.recipe.to_json(),
        data={use: _data(each.shards) for use, each in sets.items() if each is not None},
        mixing_set=_mixing_set(training, loader.mixing_fingerprint),
        weights=_weights(training),
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


def _weights(training: "Training") -> WeightsFacts | None:
    if training.weights is not None:
        return WeightsFacts(location=str(training.weights), sha256=file_sha256(training.weights))
    if training.pretrained:
        return WeightsFacts(location="torchvision", sha256=None)
    return None
