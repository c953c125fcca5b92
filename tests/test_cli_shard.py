"""Wrong input of `pixmix-shard` ends in one line."""

from pathlib import Path

import pytest

from shard_commands import run


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["imagefolder", "nowhere", "out"], 1, "nowhere is not a folder"),
        (["imagefolder", ".", "out"], 1, "out is inside . and would become one of its classes"),
        (["imagefolder", ".", "../out"], 1, "has no class folders"),
        (["cifar10", "nowhere", "out"], 1, "holds neither cifar-10-batches-py/ nor"),
        (["mixing", "nowhere", "out"], 1, "nowhere does not exist"),
        (["digits", "out", "--num-shards", "2", "--shard-size", "3"], 2, "exclude each other"),
        (["digits", "out", "--num-shards", "5000"], 1, "cannot fill 5000 shards"),
        (["digits", "out", "--num-shards", "0"], 2, "--num-shards"),
        (["mixing", ".", "out", "--name", "Ä b"], 2, "name is 'Ä b'"),
        (["verify", "nowhere"], 1, "nowhere does not exist"),
        (["verify", "."], 1, "has no manifest.json"),
        (["verify", ".", "--decode", "some"], 2, "'some' is not a number"),
        (["index", "nowhere.tar"], 1, "nowhere.tar is not a file"),
    ],
)
def test_wrong_input_ends_in_one_line(
    arguments: list[str], exit_code: int, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert "Traceback" not in result.output
