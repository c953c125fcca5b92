"""Archives of images and published datasets, also damaged and hostile ones."""

import gzip
import io
import json
import pickle
import re
import resource
import shutil
import struct
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from pipelines.cli.show import main as show
from pipelines.errors import PipelineError
from pipelines.loading.dataset import ShardDataset, decode_image
from pipelines.loading.mixing_set import image_source, open_mixing_set
from pipelines.shards import archives
from pipelines.shards.archives import archived_images, read_archived, read_split
from pipelines.shards.format import open_shards
from pipelines.shards.images import DecodeError
from pipelines.shards.tar import scan_tar
from pipelines.system.untrusted import read_pickle
from shard_commands import Evil, made, run
from shard_sets import drawn_images, encoded

pytestmark = pytest.mark.usefixtures("in_this_process")


IMAGES = drawn_images(6, 5, (20, 30))


def pixels_of(folder: Path) -> list[NDArray[np.uint8]]:
    """Return the images of a sharded dataset in the order of their keys."""
    opened = open_shards(folder)
    reader = ShardDataset(opened)
    order = sorted(range(len(opened)), key=opened.key)
    return [decode_image(bytes(reader.read(i))) for i in order]


def zipped(path: Path, *, compression: int = zipfile.ZIP_DEFLATED, prefix: str = "set/") -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("__MACOSX/set/._0.png", b"x")
        archive.writestr("set/", b"")
        archive.writestr("set/readme.txt", b"x")
        for i, image in enumerate(IMAGES):
            archive.writestr(f"{prefix}{i}.png", encoded(image))
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", ["", "./", "set/deeper/"])
def test_a_zip_is_read_without_unpacking(tmp_path: Path, compression: int, prefix: str) -> None:
    archive = zipped(tmp_path / "images.zip", compression=compression, prefix=prefix)
    packed = open_mixing_set(archive, 20, cache_dir=tmp_path / "cache")
    assert len(packed) == 6
    for i, image in enumerate(IMAGES):
        assert np.array_equal(packed[i], image)
    assert run("mixing", archive, tmp_path / "out", "--jobs", 1).exit_code == 0
    for found, image in zip(pixels_of(tmp_path / "out"), IMAGES, strict=True):
        assert np.array_equal(found, image)
    result = CliRunner().invoke(show, ["set", str(archive), "--json"])
    assert json.loads(result.stdout)["images"] == 6


def test_an_array_of_images_is_read_without_conversion(tmp_path: Path) -> None:
    """The 300K random images are distributed in this format."""
    array = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    np.save(tmp_path / "300K_random_images.npy", array)
    packed = open_mixing_set(tmp_path / "300K_random_images.npy", 32, cache_dir=tmp_path / "cache")
    assert np.array_equal(np.stack([packed[i] for i in range(12)]), array)
    assert run("mixing", tmp_path / "300K_random_images.npy", tmp_path / "out").exit_code == 0
    assert np.array_equal(np.stack(pixels_of(tmp_path / "out")), array)
    assert "encoder" in open_shards(tmp_path / "out").settings


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 32, 32), np.uint8), np.zeros((3, 32, 32, 3)), np.zeros((0, 32, 32, 3), np.uint8),
     np.zeros((3, 32, 32, 4), np.uint8), np.asfortranarray(np.zeros((3, 32, 32, 3), np.uint8)),
     np.array([{}, 1], object), np.array(7)],
)  # fmt: skip
def test_other_arrays_are_rejected(tmp_path: Path, array: NDArray[Any]) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(PipelineError, match=r"x\.npy .*uint8"):
        list(archived_images(tmp_path / "x.npy"))


@pytest.mark.parametrize(
    ("mode", "name", "program"),
    [("w:gz", "x.tar.gz", "gunzip"), ("w:gz", "x.tgz", "gunzip"), ("w:bz2", "x.tar.bz2", "bunzip2"),
     ("w:xz", "x.tar.xz", "unxz")],
)  # fmt: skip
def test_a_compressed_tar_is_rejected_with_the_command_that_decompresses_it(
    tmp_path: Path, mode: Literal["w:gz", "w:bz2", "w:xz"], name: str, program: str
) -> None:
    folder = tmp_path / "two words"
    folder.mkdir()
    with tarfile.open(folder / name, mode) as tar:
        info = tarfile.TarInfo("0.png")
        info.size = len(encoded(IMAGES[0]))
        tar.addfile(info, io.BytesIO(encoded(IMAGES[0])))
    with pytest.raises(PipelineError) as caught:
        open_mixing_set(folder / name, 20, cache_dir=tmp_path / "cache")
    remedy = re.search(r"run (.*) and use", str(caught.value))
    assert remedy
    assert remedy[1].startswith(program)
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    subprocess.run(remedy[1], shell=True, check=True)
    assert len(open_mixing_set(folder / "x.tar", 20, cache_dir=tmp_path / "cache")) == 1


@pytest.mark.parametrize("name", ["../0.png", "/etc/0.png", "a/../../0.png", "a\\..\\0.png"])
def test_a_name_that_leads_out_of_a_zip_is_rejected(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(name, encoded(IMAGES[0]))
    with pytest.raises(PipelineError, match=r"x\.zip"):
        list(archived_images(tmp_path / "x.zip"))


def test_encrypted_members_and_other_compressions_are_rejected(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip")
    content = path.read_bytes()
    # Set the encryption flag of the member in the directory.
    at = content.rindex(b"PK\x01\x02")
    path.write_bytes(content[: at + 8] + b"\x01\x00" + content[at + 10 :])
    with pytest.raises(PipelineError, match="encrypted"):
        list(archived_images(path))
    zipped(tmp_path / "x.zip", compression=zipfile.ZIP_LZMA)
    with pytest.raises(PipelineError, match="python -m zipfile -e"):
        list(archived_images(path))


def test_a_zip_bomb_does_not_use_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members whose size is too small or too large in the directory, or that share bytes."""
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(50_000_000))
    content = bomb.read_bytes()
    at = content.rindex(b"PK\x01\x02")
    wrong_size = content[: at + 24] + struct.pack("<I", 1000) + content[at + 28 :]
    (tmp_path / "wrong-size.zip").write_bytes(wrong_size)
    (image,) = archived_images(tmp_path / "wrong-size.zip")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(archives.DecodeError):
        read_archived(tmp_path / "wrong-size.zip", image.place)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 10_000_000)
    with pytest.raises(PipelineError, match="50,000,000 bytes"):
        list(archived_images(bomb))
    # Two entries of the directory refer to the same member.
    whole = zipped(tmp_path / "whole.zip").read_bytes()
    start = whole.index(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    directory = whole[start:end] * 2
    n, size = struct.unpack("<HI", whole[end + 10 : end + 16])
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2 * n, 2 * n, 2 * size, start, 0)
    (tmp_path / "twice.zip").write_bytes(whole[:start] + directory + tail)
    with pytest.raises(PipelineError, match="overlap"):
        list(archived_images(tmp_path / "twice.zip"))


def test_a_damaged_member_of_a_zip_is_a_decode_error(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    *_, last = archived_images(path)
    content[last.place[0] + last.place[1] // 2] ^= 0x55
    path.write_bytes(content)
    result = run("mixing", path, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "5.png" in result.stderr
    assert run("mixing", path, tmp_path / "out", "--on-decode-error", "skip").exit_code == 0
    assert len(open_shards(tmp_path / "out")) == 5
    with pytest.raises(DecodeError):
        image_source(path).read(5)


FILES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]


def cifar_files(seed: int = 0, protocol: int = 2) -> dict[str, bytes]:
    generator = np.random.default_rng(seed)
    files = {}
    for name in FILES:
        data = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        batch = {"data": data, "labels": [0, 3, 9, 1], "batch_label": "x", "filenames": ["a"] * 4}
        files[name] = pickle.dumps(batch, protocol=protocol)
    names = [f"class {i}" for i in range(10)]
    files["batches.meta"] = pickle.dumps({"label_names": names}, protocol=protocol)
    return files


def cifar_archive(
    path: Path, files: dict[str, bytes], prefix: str = "cifar-10-batches-py/"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_pickles_of_all_protocols_are_read(protocol: int) -> None:
    files = cifar_files(protocol=protocol)
    for name in FILES:
        ours, theirs = read_pickle(files[name], name), pickle.loads(files[name])
        assert np.array_equal(ours.pop("data"), theirs.pop("data"))
        assert ours == theirs


@pytest.mark.parametrize("prefix", ["./cifar-10-batches-py/", "././cifar-10-batches-py//"])
def test_names_that_begin_with_a_dot_and_a_slash_are_read(tmp_path: Path, prefix: str) -> None:
    archive = cifar_archive(tmp_path / "cifar-10-python.tar.gz", cifar_files(), prefix)
    assert run("cifar10", archive, tmp_path / "out", "--jobs", 1).exit_code == 0
    assert len(open_shards(tmp_path / "out" / "train")) == 20


@pytest.mark.parametrize("how", ["lacks a file", "lacks the names", "is cut off", "is empty"])
def test_the_archive_is_used_if_the_folder_is_incomplete(tmp_path: Path, how: str) -> None:
    files = cifar_files()
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    damaged = folder / ("batches.meta" if how == "lacks the names" else "data_batch_4")
    if how.startswith("lacks"):
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:1000] if how == "is cut off" else b"")
    result = run("cifar10", tmp_path / "root", tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert damaged.name in result.stderr
    archive = cifar_archive(tmp_path / "root" / "cifar-10-python.tar.gz", files)
    read_split.cache_clear()
    for source in (tmp_path / "root", folder):
        out = tmp_path / f"out of {source.name}"
        assert run("cifar10", source, out, "--jobs", 1).exit_code == 0
        assert len(open_shards(out / "train")) == 20
    archive.write_bytes(archive.read_bytes()[:-100])
    read_split.cache_clear()
    result = run("cifar10", tmp_path / "root", tmp_path / "other", "--jobs", 1)
    assert result.exit_code == 1
    assert archive.name in result.stderr


def test_a_replaced_cifar_archive_is_detected(tmp_path: Path) -> None:
    archive = cifar_archive(tmp_path / "cifar-10-python.tar.gz", cifar_files(0))
    assert run("cifar10", archive, tmp_path / "out", "--jobs", 1).exit_code == 0
    cifar_archive(archive, cifar_files(1))
    read_split.cache_clear()
    result = run("cifar10", archive, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "source_sha256" in result.stderr


def test_an_archive_that_unpacks_to_too_many_bytes_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_CIFAR_ARCHIVE_BYTES", 1_000_000)
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(gzip.compress(bytes(2_000_000)))
    with pytest.raises(PipelineError, match="1,000,000"):
        read_split("cifar10", path, "train")


@contextmanager
def quickly(seconds: float = 5) -> Iterator[None]:
    before = time.process_time()
    yield
    assert time.process_time() - before < seconds


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


RECONSTRUCT = named("numpy.core.multiarray", "_reconstruct") + b"("


ARRAY = RECONSTRUCT + named("numpy", "ndarray") + b"(" + number(0) + b"t" + text("b") + b"tR"


INTEGERS = named("numpy", "dtype") + b"(" + text("i8") + number(0) + number(1) + b"tR"


def order(flags: int) -> bytes:
    return b"(" + number(3) + text(">") + b"NNN" + number(-1) * 2 + number(flags) + b"tb"


def remembered(k: int) -> bytes:
    return b"h" + bytes([k])


DOUBLED = b"(lq\0" + b"".join(b"(" + remembered(k) * 2 + b"lq" + bytes([k + 1]) for k in range(40))


TUPLES = b")q\0" + b"".join(remembered(k) * 2 + b"\x86q" + bytes([k + 1]) for k in range(60))


HOSTILE: dict[str, bytes] = {
    "flags of objects": opcodes(
        ARRAY, b"(", number(1), b"(", number(4), b"t", INTEGERS, order(0x1B), b"\x89",
        text("A" * 32), b"tb",
    ),
    "2**40 lists in a call": opcodes(
        DOUBLED, RECONSTRUCT, named("numpy", "ndarray"), remembered(40), number(0), b"tR"
    ),
    "a key of 2**60 tuples": opcodes(b"}", TUPLES, number(0), b"s"),
    "a shape of 2**90": opcodes(
        ARRAY, b"(", number(1), b"(", number(2**30) * 3, b"t", INTEGERS, b"\x89", text(""), b"tb"
    ),
    "a negative shape": opcodes(
        ARRAY, b"(", number(1), b"(", number(-1), b"t", INTEGERS, b"\x89", text(""), b"tb"
    ),
    "a memo at 2**32": opcodes(b"Nr\xff\xff\xff\xff"),
    "bytes of 2**62": opcodes(b"\x8e" + struct.pack("<Q", 2**62)),
    "a bytearray of 2**62": opcodes(b"\x96" + struct.pack("<Q", 2**62)),
    "text of 2**62": opcodes(b"\x8d" + struct.pack("<Q", 2**62)),
    "a number of a million digits": opcodes(b"L" + b"9" * 10**6 + b"L\n"),
    "an extension": opcodes(b"\x82\x01"),
    "a persistent name": opcodes(b"Px\n"),
    "a new object": opcodes(named("numpy", "ndarray"), b")\x81"),
    "no stack": opcodes(b"0000"),
    "a mark in a tuple": opcodes(b"((\x86"),
    "append to a number": opcodes(number(1), number(2), b"a"),
    "build of a number": opcodes(number(1), b")b"),
    "a text encoded often": opcodes(
        text("x" * 1000), b"q\0", (named("_codecs", "encode") + b"(h\0tR") * 1000
    ),
    "much nesting": opcodes(b"(" * 50_000, b"l" * 50_000),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle_is_rejected_quickly_in_one_line(what: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with quickly():
        # Deep nesting and a large memo index are valid.
        if what in ("much nesting", "a memo at 2**32"):
            read_pickle(HOSTILE[what], "data_batch_1")
        else:
            with pytest.raises(PipelineError, match=r"^data_batch_1 .{1,200}$"):
                read_pickle(HOSTILE[what], "data_batch_1")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_a_pickle_that_repeats_values_is_rejected(tmp_path: Path) -> None:
    files = cifar_files()
    files["data_batch_1"] = opcodes(b"}", text("labels"), DOUBLED, b"s")
    archive = cifar_archive(tmp_path / "cifar-10-python.tar.gz", files)
    with quickly():
        result = run("cifar10", archive, tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "data_batch_1" in result.stderr


def plain_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers in (("0.png", {}), ("\u00e9" * 80 + ".png", {"size": "100"})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 100, headers
            tar.addfile(info, io.BytesIO(bytes(100)))
    return file.getvalue()


def gnu_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("d/" * 80 + "0.png")
        info.size = 100
        tar.addfile(info, io.BytesIO(bytes(100)))
    return file.getvalue()


def small_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"{i}.png", b"abc" * 50)
        archive.comment = b"a comment"
    return file.getvalue()


def small_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((3, 4, 5, 3), np.uint8))
    return file.getvalue()


def read_all(path: Path) -> None:
    for image in archived_images(path):
        try:
            read_archived(path, image.place)
        except (OSError, archives.DecodeError):
            continue


def read_tar(path: Path) -> None:
    list(scan_tar(path))


def read_batch(path: Path) -> None:
    read_pickle(path.read_bytes(), "file")


def with_checksum(content: bytearray, block: int) -> None:
    """Correct the checksum of a tar header, so that its changed fields are read."""
    header = content[block : block + 512]
    header[148:156] = b" " * 8
    content[block + 148 : block + 156] = b"%06o\0 " % sum(header)


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(content)
    kind = generator.integers(0, 5)
    at = int(generator.integers(0, len(changed)))
    if kind == 0:
        return bytes(changed[:at])
    if kind == 1:
        changed[at:at] = changed[: int(generator.integers(0, len(changed)))]
    elif kind == 2:
        value = int(generator.choice([0, 0xFF, 0x80, 0x7F, ord("9"), ord("-")]))
        changed[at : at + 8] = bytes([value]) * 8
    else:
        for _ in range(int(generator.integers(1, 6))):
            changed[int(generator.integers(0, len(changed)))] = int(generator.integers(0, 256))
    return bytes(changed)


SEEDS: dict[str, tuple[Callable[[], bytes], Callable[[Path], None]]] = {
    "pax tar": (plain_tar, read_tar),
    "gnu tar": (gnu_tar, read_tar),
    "zip": (small_zip, read_all),
    "array": (small_array, read_all),
    "batch 0": (lambda: cifar_files(protocol=0)["test_batch"][-3000:], read_batch),
    "batch 2": (lambda: cifar_files(protocol=2)["test_batch"], read_batch),
    "batch 4": (lambda: cifar_files(protocol=4)["batches.meta"], read_batch),
}


@pytest.mark.parametrize("what", SEEDS)
def test_a_file_with_changed_bytes_is_read_or_rejected(tmp_path: Path, what: str) -> None:
    """It is rejected by a PipelineError, quickly and with little memory."""
    make, read = SEEDS[what]
    content = make()
    generator = np.random.default_rng(1)
    path = tmp_path / "file"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(400):
        changed = bytearray(mutated(content, generator))
        if "tar" in what:
            for block in range(0, len(changed) - 511, 512):
                if changed[block + 257 : block + 262] == b"ustar":
                    with_checksum(changed, block)
        path.write_bytes(changed)
        with quickly():
            try:
                read(path)
            except PipelineError:
                refused += 1
    assert refused > 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def cifar_folder(root: Path, *, evil: bool = False) -> NDArray[np.uint8]:
    """Write CIFAR-10's pickles with five images per batch; return the images."""
    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, (30, 3072), dtype=np.uint8)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch: dict[str, Any] = {
            "data": data[5 * i : 5 * i + 5],
            "labels": [(5 * i + j) % 10 for j in range(5)],
        }
        if evil and i == 2:
            batch["labels"] = Evil()
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_is_read_in_the_official_order(tmp_path: Path, packed: bool) -> None:
    images = cifar_folder(tmp_path / "root")
    source = tmp_path / "root"
    if packed:
        source = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(source, "w:gz") as tar:
            tar.add(tmp_path / "root" / "cifar-10-batches-py", "cifar-10-batches-py")
    out = made("cifar10", source, tmp_path / "out", "--num-shards", 3)
    for split, first, n in (("train", 0, 25), ("test", 25, 5)):
        opened = open_shards(out / split)
        assert (len(opened), opened.kind) == (n, "cifar10")
        assert opened.classes[3] == "class 3"
        reader = ShardDataset(opened)
        for i in range(n):
            number = int(opened.key(i))
            image = np.asarray(Image.open(io.BytesIO(reader.read(i))))
            assert np.array_equal(image, images[first + number])
            assert opened.samples["label"][i] == (first + number) % 10


def test_a_pickle_that_would_run_code_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cifar_folder(tmp_path / "root", evil=True)
    result = run("cifar10", tmp_path / "root", tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "data_batch_3 is not a plain pickle: it refers to " in result.stderr
    assert not (tmp_path / "pickle-was-run").exists()
    for content in (pickle.dumps(Evil()), pickle.dumps(print), b"cos\nsystem\n(S'ls'\ntR."):
        with pytest.raises(PipelineError, match="is not a plain pickle: it refers to"):
            read_pickle(content, "file")
    for content in (b"", b"\x80\x02", b"not a pickle", pickle.dumps([1, 2])[:-1]):
        with pytest.raises(PipelineError, match=r"is a damaged pickle|is not a plain pickle"):
            read_pickle(content, "file")


def test_the_digits_need_no_download(tmp_path: Path) -> None:
    result = run("digits", tmp_path, "--jobs", 1, "--json")
    assert result.exit_code == 0, result.output
    assert [each["n_samples"] for each in json.loads(result.stdout)["sets"]] == [1438, 359]
    labels = open_shards(tmp_path / "test").samples["label"]
    assert set(labels.tolist()) == set(range(10))
