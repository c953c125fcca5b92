"""Reading weights files: harmless content is read, hostile content is never executed."""

import argparse
import io
import os
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from featviz.state_dicts import read_weights
from featviz.weights import load_checkpoint, read_checkpoint_file
from pipelines.models.registry import open_model


def reference_checkpoint(module: nn.Module, *, steps: int = 3) -> dict[str, object]:
    """Train a few steps like the released scripts, and return the content that they save."""
    optimizer = torch.optim.SGD(
        module.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    wrapped = nn.DataParallel(module)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: 1e-5 + (1 - 1e-5) * 0.5 * (1 + np.cos(step / 100 * np.pi)),
    )
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.rand(2, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        schedule.step()
    state = optimizer.state_dict()
    assert type(state["param_groups"][0]["lr"]) is np.float64
    return {
        "epoch": 99,
        "dataset": "cifar10",
        "model": "wrn",
        "state_dict": wrapped.state_dict(),
        "best_acc": np.float64(0.9512),
        "optimizer": state,
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_the_released_scripts_is_read_completely(
    tmp_path: Path, zipped: bool
) -> None:
    module = open_model("wrn_10_1", 10)
    content = reference_checkpoint(module)
    torch.save(content, tmp_path / "c.pth.tar", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint_file(tmp_path / "c.pth.tar")
    assert read["best_acc"] == 0.9512
    assert read["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
    assert read["state_dict"].keys() == content["state_dict"].keys()
    for name, value in module.state_dict().items():
        assert torch.equal(read["state_dict"][f"module.{name}"], value)
    torch.optim.SGD(module.parameters(), 0.1, momentum=0.9).load_state_dict(read["optimizer"])


@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_values_beside_the_tensors_keep_value_and_type(
    tmp_path: Path, zipped: bool
) -> None:
    content = {
        "state_dict": OrderedDict(w=torch.arange(3.0)),
        "args": argparse.Namespace(lr=np.float32(0.5), path=Path("a/b"), seeds=[1, 2]),
        "numbers": [np.int64(-3), np.bool_(True), np.float16(0.25), np.str_("ä"), np.bytes_(b"x")],
        "array": np.arange(6, dtype=">i4").reshape(2, 3).T,
        "empty": np.zeros((0, 4)),
        "names": np.array(["cat", "horse"]),
        "generator": np.random.RandomState(0).get_state(),
        "torch": torch.__version__,
        "none": None,
    }
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint_file(tmp_path / "c.pt")
    assert read["args"] == argparse.Namespace(
        lr=np.float32(0.5), path=PurePosixPath("a/b"), seeds=[1, 2]
    )
    assert read["numbers"] == content["numbers"]
    assert [type(each) for each in read["numbers"]] == [type(each) for each in content["numbers"]]
    for name in ("array", "empty", "names"):
        assert isinstance(read[name], np.ndarray)
        np.testing.assert_array_equal(read[name], content[name])
    np.testing.assert_array_equal(read["generator"][1], content["generator"][1])
    assert read["torch"] == torch.__version__
    assert torch.equal(read["state_dict"]["w"], torch.arange(3.0))


def test_both_module_names_of_numpy_are_supported() -> None:
    for old, new in ((b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")):
        buffer = io.BytesIO()
        values = {"lr": np.float64(0.5), "a": np.arange(3)}
        torch.save(values, buffer, _use_new_zipfile_serialization=False)
        read = load_checkpoint(io.BytesIO(buffer.getvalue().replace(old, new)), "c.pt")
        assert read["lr"] == 0.5
        assert read["a"].tolist() == [0, 1, 2]


class Hostile:
    """An object that is pickled as a function call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def _nested_pickle() -> bytes:
    return pickle.dumps(Hostile(os.mkdir, "was-run"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content_of", "name_in_message"),
    [
        (lambda: Hostile(os.system, "mkdir was-run"), "posix.system"),
        (lambda: Hostile(os.mkdir, "was-run"), "posix.mkdir"),
        (lambda: Hostile(eval, "open('was-run', 'w')"), "eval"),
        (lambda: Hostile(getattr, "", "join"), "getattr"),
        (lambda: Hostile(pickle.loads, _nested_pickle()), "pickle.loads"),
        (lambda: np.array([Hostile(os.mkdir, "was-run")]), "dtype 'O8'"),
        (lambda: np.array([None, "x"], object), "dtype 'O8'"),
        (lambda: Hostile(np.dtype("f8").__reduce__()[0], "O8", False, True), "dtype 'O8'"),
        (lambda: np.zeros(2, [("a", "f8"), ("b", "O")]), "dtype 'V16'"),
        (lambda: np.load, "numpy.load"),
        (lambda: nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_code_in_a_pickle_is_named_and_not_executed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content_of: Callable[[], object],
    name_in_message: str,
    zipped: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": content_of()}, "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.pt") as caught:
        read_checkpoint_file(Path("evil.pt"))
    assert name_in_message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("was-run").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_a_bare_pickle_is_named_in_any_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": OrderedDict(lr=np.float64(0.5)), "w": Hostile(os.mkdir, "was-run")}
    Path("evil.pkl").write_bytes(pickle.dumps(content, protocol))
    torch.save(content, "evil.pt", pickle_protocol=max(protocol, 2))
    for name in ("evil.pkl", "evil.pt"):
        with pytest.raises(ValueError, match=r"would execute posix\.mkdir"):
            read_checkpoint_file(Path(name))
    assert not Path("was-run").exists()


def _pickle_of(*opcodes: bytes) -> bytes:
    """Return a torch file of the old format whose content is built by opcodes."""
    head = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {})]
    return b"".join([*head, b"\x80\x02", *opcodes, b".", pickle.dumps([], 2)])


_SCALAR = b"cnumpy.core.multiarray\nscalar\n"
_DTYPE = b"cnumpy\ndtype\n"
_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"


@pytest.mark.parametrize(
    "opcodes",
    [
        # scalar(dtype("O8"), bytes of a pickle)
        [_SCALAR, _DTYPE, b"X\x02\0\0\0O8", b"\x85R", b"U\x03abc", b"\x86R"],
        # scalar(None, bytes); scalar(dtype, tuple); a dtype that does not exist
        [_SCALAR, b"N", b"U\x03abc", b"\x86R"],
        [_SCALAR, _DTYPE, b"X\x02\0\0\0f8", b"\x85R", b")", b"\x86R"],
        [_SCALAR, _DTYPE, b"X\x02\0\0\0f7", b"\x85R", b"U\x07abcdefg", b"\x86R"],
        # ndarray.__new__ of 10^12 values; _reconstruct of as many; then a state of as many
        [b"cnumpy\nndarray\n", b"\x8a\x06\0\0\0\xd4\x94\x35", b"\x85\x85\x81", b"K\x01b"],
        [_ARRAY, b"\x8a\x06\0\0\0\xd4\x94\x35", b"\x85U\x01b\x87R", b"(K\x01", b"tb"],
        [_ARRAY, b"K\x00\x85U\x01b\x87R", b"(K\x01\x8a\x06\0\0\0\xd4\x94\x35\x85",
         _DTYPE, b"X\x02\0\0\0f8", b"\x85R\x89U\x01xtb"],
        # a negative side
        [_ARRAY, b"K\x00\x85U\x01b\x87R", b"(K\x01J\xff\xff\xff\xff\x85",
         _DTYPE, b"X\x02\0\0\0f8", b"\x85R\x89U\x01xtb"],
        # text of 4 million bytes per value, a dtype state that is not a tuple, a path of numbers
        [_DTYPE, b"X\x07\0\0\0U999999", b"\x85R", b"K\x01b"],
        [b"cpathlib\nPosixPath\nK\x01\x85R"],
        [b"ctorch.torch_version\nTorchVersion\n]\x85\x81"],
    ],
)  # fmt: skip
def test_hostile_numpy_values_are_rejected_without_allocating_memory(opcodes: list[bytes]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"evil\.pt"):
        load_checkpoint(io.BytesIO(_pickle_of(*opcodes)), "evil.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_storage_of_a_terabyte_is_rejected_without_allocating_memory() -> None:
    storage = [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu",
        b"\x8a\x06\0\0\0\xd4\x94\x35", b"NtQ", b"K\x00\x8a\x06\0\0\0\xd4\x94\x35\x85K\x01\x85\x89N",
    ]  # fmt: skip
    opcodes = [storage[0], b"(", *storage[1:], b"tR"]
    head = _pickle_of(*opcodes)[: -len(pickle.dumps([], 2))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"evil\.pt"):
        load_checkpoint(
            io.BytesIO(head + pickle.dumps(["0"], 2) + struct.pack("<q", 10)), "evil.pt"
        )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_zip_bomb_is_rejected(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(10_000_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for each in plain.infolist():
            bomb.writestr(each.filename, plain.read(each))
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb\.pt"):
        read_checkpoint_file(tmp_path / "bomb.pt")


def test_a_tensor_with_more_values_than_the_file_is_rejected(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1).expand(10**12)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"fc\.weight of shape \(1000000000000,\)"):
        read_weights(tmp_path / "wide.pt")


def test_safe_globals_of_other_libraries_are_ignored_and_restored(
    tmp_path: Path,
) -> None:
    torch.save({"w": nn.Linear(2, 2)}, tmp_path / "module.pt")
    with torch.serialization.safe_globals([nn.Linear, (exec, "numpy.dtype")]):
        before = torch.serialization.get_safe_globals()
        with pytest.raises(ValueError, match="Linear"):
            read_checkpoint_file(tmp_path / "module.pt")
        assert set(torch.serialization.get_safe_globals()) == set(before)


def _saved(content: object, **options: int) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


_STATE = {"w": torch.arange(1000.0)}


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "is empty"),
        (lambda: bytes(1000), "zeros"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (lambda: b"\n<!DOCTYPE html><html>", "HTML"),
        (lambda: b"<html><body>404", "HTML"),
        (lambda: b"\x1f\x8b\x08" + bytes(90), "gunzip"),
        (lambda: b"weights, please", "neither"),
        (lambda: _saved(_STATE)[:-700], "truncated"),
        (lambda: _saved(_STATE)[:100], "truncated"),
        (lambda: _flipped(_saved(_STATE), 2000), "damaged"),
        (lambda: pickle.dumps(_STATE, 4)[:50], "protocol 4"),
        (lambda: _saved(_STATE, pickle_protocol=4), "protocol 4"),
        (lambda: safetensors.torch.save(_STATE)[:-8], "safetensors"),
        (lambda: struct.pack("<Q", 40) + b'{"w": {"dtype": "F32", "shape": [9999999' + bytes(9),
         "safetensors"),
    ],
)  # fmt: skip
def test_unreadable_files_are_distinguished_in_one_line(
    tmp_path: Path, content: Callable[[], bytes], message: str
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=r"weights\.pt") as caught:
        read_checkpoint_file(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_detected_or_harmless(tmp_path: Path) -> None:
    content = _saved(_STATE)
    path = tmp_path / "weights.pt"
    for at in range(0, len(content), 97):
        path.write_bytes(_flipped(content, at))
        try:
            read = read_checkpoint_file(path)
        except ValueError:
            continue
        assert torch.equal(read["w"], _STATE["w"])


def test_torchscript_and_other_archives_are_distinguished(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"x")
    with pytest.raises(ValueError, match="TorchScript"):
        read_checkpoint_file(tmp_path / "script.pt")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="zip archive"):
        read_checkpoint_file(tmp_path / "arrays.npz")


def test_checkpoints_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(_STATE, tmp_path / "weights.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_weights(tmp_path / "weights.pt")["w"], _STATE["w"])


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_safetensors_are_recognized_by_their_content(tmp_path: Path, name: str) -> None:
    state = {"a": torch.arange(6).reshape(2, 3), "b": torch.rand(3, dtype=torch.bfloat16)}
    safetensors.torch.save_file(state, tmp_path / name, metadata={"format": "pt"})
    read = read_weights(tmp_path / name)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[each], state[each]) for each in state)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"Q32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}',
        b'{"a":[]}',
        b"{" * 5000,
    ],
)
def test_hostile_safetensors_headers_are_rejected(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    for length in (len(header), 2**40, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + header + bytes(8))
        with pytest.raises(ValueError, match="damaged safetensors file"):
            read_weights(path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path, tmp_path / "pipe.pt", Path("/dev/zero")):
        with pytest.raises(OSError, match="regular file") as caught:
            read_checkpoint_file(path)
        assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint_file(tmp_path / "absent.pt")


def test_a_file_without_a_state_dict_is_reported_with_its_top_level_keys(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"generator": {"w": torch.zeros(2)}, "epoch": 3}, path)
    with pytest.raises(ValueError, match="'generator', 'epoch'"):
        read_weights(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match="a list"):
        read_weights(path)
