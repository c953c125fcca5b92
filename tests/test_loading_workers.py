"""Workers: batches with any start method, and with little shared memory or few open files."""

import errno
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from faulty_server import FaultyServer, stall
from pipelines.errors import PipelineError
from pipelines.loading import dataset, workers
from pipelines.loading.config import IMAGENET
from pipelines.loading.dataset import ShardDataset, decode_image
from pipelines.loading.loader import eval_loader, train_loader
from pipelines.loading.workers import ByValue, fits_shared_memory, worker_errors
from pipelines.shards.format import open_shards
from pipelines.shards.images import DecodeError
from shard_sets import drawn_images, encoded, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of shards, to be read locally or from a server."""
    images = [encoded(image) for image in drawn_images(16)]
    served = tmp_path_factory.mktemp("served")
    write_shards(served / "set", images, sizes=[4] * 4)
    small = [encoded(image) for image in drawn_images(16, size=(8, 8))]
    write_shards(served / "digits", small, sizes=[8, 8], kind="digits")
    return served


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with FaultyServer(folder) as running:
        yield running


def script_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(text)
    return [sys.executable, str(path)]


def errors_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines on a script's stderr, except those about the compilation of kernels."""
    return [line for line in done.stderr.splitlines() if "kernels" not in line]


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    tests = Path(__file__).parent
    path = os.pathsep.join(map(str, (tests.parent, tests)))
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


WITHOUT_GUARD = """
import sys
from pipelines import train_loader

location, method = sys.argv[1:]
loader = train_loader(
    location,
    None,
    batch_size=8,
    seed=0,
    image_size=16,
    num_workers=2,
    multiprocessing_context=method,
)
for epoch in range(2):
    for images, labels in loader:
        print(tuple(images.shape), float(images.double().sum()))
"""


@pytest.mark.slow
def test_a_loop_without_a_main_guard_runs_under_any_start_method(
    folder: Path, tmp_path: Path
) -> None:
    command = script_of(tmp_path, WITHOUT_GUARD)
    done = [run([*command, str(folder / "set"), method]) for method in METHODS]
    for each in done:
        assert (each.returncode, errors_of(each)) == (0, [])
        assert len(each.stdout.splitlines()) == 4
        assert each.stdout == done[0].stdout


LIVE = """
import sys
from pipelines import train_loader
from pipelines.shards.remote import Remote
from pipelines.system.objects import RemoteAccess

loader = train_loader(
    sys.argv[1],
    None,
    batch_size=4,
    seed=0,
    image_size=8,
    num_workers=int(sys.argv[3]),
    shuffle_window=1,
    multiprocessing_context=sys.argv[2],
    cache_dir=sys.argv[4],
    # Workers may take long to start, and no warning must be printed meanwhile.
    remote=Remote(access=RemoteAccess(stall_s=300)),
)
batches = iter(loader)
print(tuple(next(batches)[0].shape))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("location", ["local", "stalled", "in memory"])
def test_a_script_that_exits_with_a_live_iterator_prints_no_error(
    folder: Path, server: FaultyServer, tmp_path: Path, location: str, method: str, workers: int
) -> None:
    if location == "in memory" and (workers or method != "fork"):
        pytest.skip("images in memory need no workers")
    for number in (1, 3):
        server.always[f"set/set-000{number}.tar"] = stall(100)
    at = {
        "local": str(folder / "set"),
        "stalled": server.url("set"),
        "in memory": str(folder / "digits"),
    }
    command = script_of(tmp_path, LIVE)
    done = run([*command, at[location], method, str(workers), str(tmp_path / "cache")])
    assert (done.returncode, errors_of(done)) == (0, [])
    assert done.stdout.splitlines() == ["(4, 3, 8, 8)"]


@pytest.mark.parametrize("name", ["set", "digits"])
def test_a_loader_can_be_pickled(folder: Path, name: str) -> None:
    side = 8 if name == "digits" else 16
    loader = train_loader(folder / name, None, batch_size=4, seed=0, image_size=side)
    next(iter(loader))
    other = pickle.loads(pickle.dumps(loader))
    for (images, labels), (others, their_labels) in zip(loader, other, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_batches_sent_through_pipes_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    from dataclasses import replace

    preprocess = replace(IMAGENET, image_size=64, dtype=dtype)
    expected = list(train_loader(folder / "set", None, batch_size=8, preprocess=preprocess))
    monkeypatch.setattr(workers, "_SMALL_BYTES", 0)
    monkeypatch.setattr(workers, "fits_shared_memory", lambda *_: False)
    monkeypatch.setattr(workers, "shared_tensor", lambda *_: pytest.fail("shared memory was used"))
    loader = train_loader(
        folder / "set", None, batch_size=8, preprocess=preprocess, num_workers=1,
        multiprocessing_context="fork",
    )  # fmt: skip
    for (images, labels), (others, their_labels) in zip(expected, loader, strict=True):
        assert images.dtype == others.dtype == dtype
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)


@pytest.mark.parametrize(
    "tensor", [torch.arange(6).reshape(2, 3), torch.empty(0, 3), torch.ones(3, 2).T, torch.ones(())]
)
def test_a_tensor_is_pickled_without_change(tensor: torch.Tensor) -> None:
    arrived = pickle.loads(pickle.dumps(ByValue(tensor)))
    assert arrived.dtype == tensor.dtype
    assert torch.equal(arrived, tensor)


def test_too_little_shared_memory_is_logged_with_size_and_remedies(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    class Status:
        f_bavail, f_frsize = 64, 2**20

    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(workers.os, "statvfs", lambda _path: Status)
    assert fits_shared_memory(16 * 2**20, 1)
    assert fits_shared_memory(10**12, 0)
    assert not caplog.records
    assert not fits_shared_memory(154 * 2**20, 4)
    (record,) = caplog.records
    for part in ("64 MiB", "1540 MiB", "--shm-size", "--workers"):
        assert part in record.getMessage()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not fits_shared_memory(16 * 2**20, 1)


def test_no_more_shards_are_open_than_the_limit_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "set", [b"image %d" % i for i in range(30)], sizes=[1] * 30)
    listed = Path("/proc/self/fd")
    in_use = sum(1 for _ in listed.iterdir()) if listed.is_dir() else 0
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (3, 1):
        limit = in_use + dataset._RESERVED_FILES + most if most > 1 else in_use + 2
        monkeypatch.setattr(
            dataset.resource, "getrlimit", lambda _which, limit=limit: (limit, before[1])
        )
        reader = ShardDataset(open_shards(folder))
        for i in (*range(30), 0):
            assert reader.read(i) == b"image %d" % i
        assert len(reader._open) <= most + 1
        reader.close()


def test_shards_are_closed_when_other_code_uses_up_the_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "set", [b"image %d" % i for i in range(9)], sizes=[1] * 9)
    reader = ShardDataset(open_shards(folder))
    really_open = os.open

    def limited(path: object, flags: int, *rest: int) -> int:
        if str(path).endswith(".tar") and len(reader._open) >= 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return really_open(path, flags, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset.os, "open", limited)
    for i in range(9):
        assert reader.read(i) == b"image %d" % i
    monkeypatch.setattr(
        dataset.os,
        "open",
        lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
    )
    reader.close()
    with pytest.raises(PipelineError, match="ulimit -n"):
        reader.read(0)


FEW_FILES = """
import resource, sys
from pipelines import train_loader
from pipelines.errors import PipelineError

resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
loader = train_loader(
    sys.argv[1], None, batch_size=8, image_size=64, num_workers=2, multiprocessing_context="fork"
)
try:
    print(sum(1 for _ in loader))
except PipelineError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [30, 45, 60, 80])
def test_few_open_files_suffice_or_raise_an_error_at_once(tmp_path: Path, limit: int) -> None:
    images = [encoded(image) for image in drawn_images(80, size=(16, 16))]
    folder = write_shards(tmp_path / "set", images, sizes=[1] * 80)
    done = run([*script_of(tmp_path, FEW_FILES), str(folder), str(limit)])
    assert done.stdout.strip() == "10" or "ulimit -n" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is", "--shm-size"),
        ("Too many open files. Communication with the workers is no longer", "ulimit -n"),
        ("received 0 items of ancdata", "ulimit -n"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "fewer --workers"),
    ],
)
def test_errors_of_workers_are_one_line_with_a_remedy(message: str, remedy: str) -> None:
    with pytest.raises(PipelineError, match=remedy), worker_errors():
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="other"), worker_errors():
        raise RuntimeError("other")


def test_full_shared_memory_is_an_error_of_the_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_n_bytes: int) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", refuse)
    loader = eval_loader(
        folder / "set", batch_size=8, image_size=64, num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(PipelineError, match="--shm-size"):
        list(loader)


def test_a_thin_image_is_decoded() -> None:
    import numpy as np

    thin = encoded(np.zeros((1, 30_000, 3), np.uint8))
    assert decode_image(thin).shape == (1, 30_000, 3)
    with pytest.raises(DecodeError):
        decode_image(thin[:100])
