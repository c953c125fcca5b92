"""An unknown option says which one it may have meant."""

import click
import pytest
from click.testing import CliRunner

from pipelines.cli import bench, demo, evaluate, gen, shard, show, train
from pipelines.cli.suggestions import _NAMES, SuggestingCommand

MAINS = (bench, demo, evaluate, gen, shard, show, train)


def commands() -> list[click.Command]:
    found: list[click.Command] = []
    for main in MAINS:
        group = main.main
        found += group.commands.values() if isinstance(group, click.Group) else [group]
    return found


def test_every_command_suggests_options() -> None:
    assert len(commands()) > 20
    assert [each.name for each in commands() if not isinstance(each, SuggestingCommand)] == []


def test_what_is_suggested_is_an_option_of_a_command() -> None:
    options = {name for each in commands() for param in each.params for name in param.opts}
    assert set(_NAMES) - options == set()


@pytest.mark.parametrize(
    ("main", "words", "suggested"),
    [
        (train.main, ["digits", "--lr", "1"], "--learning-rate"),
        (train.main, ["digits", "--lr=1"], "--learning-rate"),
        (train.main, ["digits", "-lr", "1"], "--learning-rate"),
        (train.main, ["digits", "--learning_rate", "1"], "--learning-rate"),
        (train.main, ["digits", "--wd", "1"], "--weight-decay"),
        (train.main, ["digits", "--bs", "1"], "--batch-size"),
        (train.main, ["digits", "-b", "1"], "--batch-size"),
        (train.main, ["digits", "--batch", "1"], "--batch-size"),
        (train.main, ["digits", "--num-workers", "1"], "--workers"),
        (train.main, ["digits", "-j4"], "--workers"),
        (train.main, ["folder", "--data-dir", "x"], "--data"),
        (train.main, ["folder", "--output", "x"], "--out"),
        (train.main, ["folder", "--weight-deca", "1"], "--weight-decay"),
        (train.main, ["digits", "--gpus", "2"], "torchrun --nproc-per-node"),
        (train.main, ["digits", "--nesterov"], "--optimizer sgd has Nesterov"),
        (gen.main, ["fractals", "--num-workers", "2"], "--jobs"),
        (gen.main, ["fractals", "--output-dir", "x"], "--out"),
        (shard.main, ["imagefolder", "--num_workers", "2"], "--jobs"),
        (evaluate.main, ["--ckpt", "x"], "--checkpoint"),
        (evaluate.main, ["make-c", "--data-dir", "x"], "--data"),
        (show.main, ["mixed", "--output", "x"], "--out"),
        (demo.main, ["--output", "x"], "--out"),
        (bench.main, ["all", "--jso"], "--json"),
    ],
)
def test_an_option_of_another_script_leads_to_ours(
    main: click.Command, words: list[str], suggested: str
) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    option = next(word for word in words if word.startswith("-")).partition("=")[0]
    assert f"'{option}'" in last
    assert suggested in last


def test_an_option_like_no_other_has_no_suggestion() -> None:
    result = CliRunner().invoke(train.main, ["digits", "--qqq"])
    assert result.exit_code == 2
    assert "Did you mean" not in result.stderr
