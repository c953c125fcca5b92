"""Training on remote shards: addresses, server faults, the watchdog and frequent checkpoints."""

import json
import math
import pickle
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from faulty_server import Fault, FaultyServer, cut, flip, replaced, slowly, stall, status
from pipelines.cli import train as command
from pipelines.errors import PipelineError
from pipelines.loading.config import IMAGENET, LoaderConfig
from pipelines.loading.dataset import ShardDataset
from pipelines.shards.format import open_shards
from pipelines.shards.remote import Remote, open_set
from pipelines.system.objects import RemoteAccess
from pipelines.system.process_group import Watchdog
from pipelines.training.checkpoints import find_checkpoints
from pipelines.training.data import hold_out, open_training_data
from pipelines.training.loop import train
from pipelines.training.recipes import StepProgress, TrainConfig, named_recipe
from shard_sets import drawn_images, encoded
from training_sets import (
    A_SHARD,
    ALONE,
    N_SHARDS,
    assert_same,
    take_fields,
    weights_of,
    write_small_shards,
)

RECIPE = named_recipe("imagenet")

BATCH, EPOCHS = 8, 2
N = N_SHARDS * A_SHARD

pytestmark = pytest.mark.usefixtures("one_thread", "no_proxy")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_shards(tmp_path_factory.mktemp("served"))


# --- Addresses -----------------------------------------------------------------------------------


def nothing(_done: int, _total: int) -> None: ...


def locations(address: Path | str, cache: Path) -> tuple[str, str | None]:
    """Return where the training and the test set at an address are."""
    data = open_training_data("folder", address, cache / "made", nothing, cache_dir=cache)
    test = data.test
    return data.train.shards.location, None if test is None else test.shards.location


def test_an_address_holds_splits_or_is_one_dataset(root: Path, tmp_path: Path) -> None:
    with FaultyServer(root) as server:
        base = server.url().rstrip("/")
        assert locations(base, tmp_path) == (f"{base}/train", f"{base}/val")
        assert locations(f"{base}/train", tmp_path) == (f"{base}/train", None)
        assert locations(f"{base}/train/manifest.json", tmp_path) == (f"{base}/train", None)
        # A query with a token applies to each file.
        assert locations(f"{base}?token=secret", tmp_path) == (f"{base}/train", f"{base}/val")
        part = open_training_data(
            "folder", f"{base}/train/set-{{0002..0004}}.tar", tmp_path, nothing
        )
        assert len(part.train.shards) == 3 * A_SHARD


@pytest.mark.parametrize("code", [404, 403])
def test_an_address_without_shards_ends_with_a_one_line_error(
    root: Path, tmp_path: Path, code: int
) -> None:
    with FaultyServer(root) as server:
        for name in ("none/train/manifest.json", "none/manifest.json"):
            server.always[name] = status(code)
        result = CliRunner().invoke(
            command.main,
            ["folder", "--data", server.url("none?token=secret"), "--out", str(tmp_path / "run"),
             "--no-mixing-set", "--cache-dir", str(tmp_path)],
        )  # fmt: skip
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "none has neither train/manifest.json nor manifest.json; check" in line
    assert "secret" not in result.stderr


def test_an_unknown_host_name_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = []

    def look_up(*arguments: object, **_: object) -> None:
        lookups.append(arguments)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(PipelineError, match=r"http://no-such-host/.*check the address"):
        open_training_data(
            "folder", "http://no-such-host/shards", tmp_path, nothing, cache_dir=tmp_path
        )
    assert len(lookups) == 1


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("200GB", 200 * 10**9), ("1.5TB", 15 * 10**11), ("512MiB", 2**29), ("7", 7), ("3 kB", 3000)],
)
def test_byte_sizes_have_units(text: str, n_bytes: int) -> None:
    from pipelines.cli.options import ByteSize

    assert ByteSize().convert(text, None, None) == n_bytes


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cache-limit", "0"),
        ("--cache-limit", "many"),
        ("--cache-limit", "5PB"),
        ("--prefetch", "0"),
        ("--download-timeout", "0"),
        ("--download-timeout", "nan"),
        ("--watchdog-timeout", "-1"),
        ("--checkpoint-every", "0"),
        ("--data", "no-such-folder"),
    ],
)
def test_wrong_usage_of_streaming_options_exits_with_code_2(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    out = str(tmp_path / "run")
    data = () if "--data" in arguments else ("--data", "http://127.0.0.1:9/shards")
    result = CliRunner().invoke(
        command.main, ["folder", *data, "--out", out, "--no-mixing-set", *arguments]
    )
    assert result.exit_code == 2, result.output
    assert list(tmp_path.iterdir()) == []


# --- Server faults -------------------------------------------------------------------------------

ACCESS = RemoteAccess(download_timeout_s=20, first_wait_s=0.02, longest_wait_s=0.2, stall_s=0.5)


def streamed(where: str | Path, out: Path, **changes: Any) -> TrainConfig:  # noqa: ANN401
    """Return a small training on local or remote shards, with a separate cache."""
    remote = Remote(access=changes.pop("access", ACCESS), prefetch=2)
    cache = out.parent / f"cache of {out.name}"
    recipe = replace(
        RECIPE, model="networks:linear", epochs=EPOCHS, batch_size=BATCH, learning_rate=0.01
    )
    arguments: dict[str, Any] = {
        "out": out,
        "recipe": recipe,
        "loader": LoaderConfig(
            batch_size=BATCH,
            seed=recipe.seed,
            preprocess=replace(IMAGENET, image_size=32),
            shuffle_window=2,
            cache_dir=cache,
            remote=remote,
            **take_fields(LoaderConfig, changes),
        ),
        "train": open_set(where, cache_dir=cache, remote=remote),
    }
    return TrainConfig(**arguments | changes)


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return the weights of the training on local shards."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return weights_of(train(streamed(root / "train", out), ALONE))


FAULTS: dict[str, list[Fault]] = {
    "busy": [status(503)] * 4,
    "too many": [status(429)] * 2,
    "cut short": [cut(2000), cut(0), cut(100)],
    "silent": [stall(1000)],
    "a wrong bit": [flip(700)],
    "another file": [replaced(b"x" * 3000)],
    "a slow link": [slowly(0.2)] * 9,
}


@pytest.mark.parametrize(
    ("fault", "num_workers"),
    [*((fault, 0) for fault in FAULTS), ("busy", 2), ("cut short", 2)],
)
def test_temporary_server_faults_do_not_change_the_weights(
    root: Path,
    undisturbed: dict[str, torch.Tensor],
    tmp_path: Path,
    fault: str,
    num_workers: int,
) -> None:
    with FaultyServer(root) as server:
        for number in (3, 7, 8):
            server.faults[f"train/set-{number:04}.tar"] = list(FAULTS[fault])
        address = server.url("train")
        trained = train(streamed(address, tmp_path / "run", num_workers=num_workers), ALONE)
        assert len(server.requests("train/set-0003.tar")) >= 2 or fault == "a slow link"
    assert_same(weights_of(trained), undisturbed)


def test_validation_and_test_sets_are_streamed(root: Path, tmp_path: Path) -> None:
    histories = []
    with FaultyServer(root) as server:
        for name, base in (("here", root), ("there", server.url().rstrip("/"))):
            training = streamed(f"{base}/train", tmp_path / name)
            test = streamed(f"{base}/val", tmp_path / name).train
            shards, validation = hold_out(training.train, 0.2)
            trained = train(
                replace(training, train=shards, validation=validation, test=test), ALONE
            )
            histories.append(trained.history)
    assert histories[0] == histories[1]
    assert {"validation_error", "test_error"} <= histories[0][0].keys()


def test_the_download_timeout_counts_from_the_last_new_byte(root: Path, tmp_path: Path) -> None:
    (shard, *_) = open_shards(root / "train").shards
    access = RemoteAccess(download_timeout_s=0.3, first_wait_s=0.2, longest_wait_s=0.2)
    with FaultyServer(root) as server:
        opened = open_set(server.url("train"), cache_dir=tmp_path, remote=Remote(access=access))
        server.faults[f"train/{shard.file}"] = [cut(1000)] * 12
        opened.files.hold(0).release()
        assert len(server.requests(f"train/{shard.file}")) == 13


def test_the_index_stays_in_a_full_cache(root: Path, tmp_path: Path) -> None:
    sizes = [shard.n_bytes for shard in open_shards(root / "train").shards]
    remote = Remote(limit_bytes=3 * max(sizes))
    with FaultyServer(root) as server:
        opened = open_set(server.url("train"), cache_dir=tmp_path, remote=remote)
        for shard in range(N_SHARDS):
            opened.files.hold(shard).release()
        assert len(server.requests("train/index.npy")) == 1
        again = open_set(server.url("train"), cache_dir=tmp_path, remote=remote)
        assert len(server.requests("train/index.npy")) == 1
    assert again.shards.hash == opened.shards.hash
    copied = pickle.loads(pickle.dumps(ShardDataset(opened.shards, opened.files.path)))
    assert copied.shards.samples.tolist() == opened.shards.samples.tolist()


def test_training_survives_a_server_outage(
    root: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    # The outage takes a second; retry waits are scaled down accordingly.
    with FaultyServer(root) as server:
        names = [f"train/set-{number:04}.tar" for number in range(N_SHARDS)]
        over = threading.Timer(1.0, server.always.clear)

        def show(shown: StepProgress) -> None:
            if shown.step == 2:
                server.always.update(dict.fromkeys(names, cut(0)))
                over.start()

        trained = train(streamed(server.url("train"), tmp_path / "run"), ALONE, show)
        over.join()
        assert max(len(server.requests(name)) for name in names) > 3
    assert_same(weights_of(trained), undisturbed)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(503), "given up after 1.5 s without new data; the last error: 503"),
        (status(404), "not found; check the address"),
        (cut(0), "given up after 1.5 s"),
        (replaced(encoded(drawn_images(1)[0])), ", got "),
    ],
    ids=["busy", "missing", "dead", "replaced"],
)
def test_permanent_server_faults_end_training_and_name_the_shard(
    root: Path, tmp_path: Path, fault: Fault, message: str, num_workers: int
) -> None:
    access = replace(ACCESS, download_timeout_s=1.5)
    with FaultyServer(root) as server:
        server.always["train/set-0005.tar"] = fault
        address = server.url("train")
        training = streamed(address, tmp_path / "run", access=access, num_workers=num_workers)
        with pytest.raises(PipelineError) as refusal:
            train(training, ALONE)
    assert "/train/set-0005.tar: " in str(refusal.value)
    assert message in str(refusal.value)


def test_a_nonfinite_loss_names_streamed_samples(root: Path, tmp_path: Path) -> None:
    with FaultyServer(root) as server:
        training = streamed(server.url("train"), tmp_path / "run")
        recipe = replace(training.recipe, learning_rate=1e30)
        with pytest.raises(PipelineError, match="the samples of its batch are in"):
            train(replace(training, recipe=recipe), ALONE)
    (path,) = (tmp_path / "run").glob("nonfinite-loss-*.json")
    document = json.loads(path.read_text())
    assert document["keys"] == [f"{i:08}" for i in document["samples"]]
    assert len(set(document["samples"])) == BATCH


# --- The watchdog --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_watchdog_names_the_awaited_shard(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    watchdog = Watchdog(first_report_s=0.4)
    processes = replace(ALONE, watchdog=watchdog)
    access = replace(ACCESS, stall_s=3)
    with FaultyServer(root) as server, watchdog.watching():
        server.faults["train/set-0005.tar"] = [stall(100)]
        address = server.url("train")
        out = tmp_path / "run"
        begun = time.monotonic()
        train(streamed(address, out, access=access, num_workers=num_workers), processes)
        took = time.monotonic() - begun
    reports = [each.getMessage() for each in caplog.records if "no step for" in each.getMessage()]
    of_shard = [each for each in reports if f"waiting for {address}/set-0005.tar" in each]
    # Reports double their interval from 0.4 s on; a worker may add one.
    assert 1 <= len(of_shard) <= math.log2(took / 0.4) + 2, reports


def test_the_watchdog_only_reports_waits_without_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watchdog = Watchdog(limit_s=0.2, first_report_s=0.1)
    with watchdog.watching(), watchdog.awaiting("a large dataset"), watchdog.without_limit():
        time.sleep(0.8)
    assert any("waiting for a large dataset" in each.getMessage() for each in caplog.records)


@pytest.mark.parametrize("arguments", [{"limit_s": -1.0}, {"first_report_s": 0.0}])
def test_a_watchdog_rejects_invalid_values(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="seconds"):
        Watchdog(**arguments)


# --- Checkpoints within an epoch -----------------------------------------------------------------


def test_checkpoint_every_bounds_the_lost_steps(
    root: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    class Ended(Exception):
        """Stands for a power cut: nothing is written after it."""

    def ending_at(step: int) -> Callable[[StepProgress], None]:
        def show(shown: StepProgress) -> None:
            if shown.step == step:
                raise Ended

        return show

    options = {"checkpoint_every": 3, "resume": True}
    seen = []
    for step in (8, 15):
        with pytest.raises(Ended):
            train(streamed(root / "train", tmp_path / "run", **options), ALONE, ending_at(step))
        seen.append([int(path.stem[5:]) for path in find_checkpoints(tmp_path / "run")])
    assert seen == [[3, 6], [9, 12]]
    ended = train(streamed(root / "train", tmp_path / "run", **options), ALONE)
    assert_same(weights_of(ended), undisturbed)
