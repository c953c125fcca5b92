"""Help of commands: groups, `--help-all`, hints for unknown options."""

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from fractals import BASELINE_DESCRIPTIONS, BASELINE_KINDS, FAMILIES
from pipelines.cli import bench, demo, evaluate, gen, shard, show, train
from pipelines.cli.help_pages import _NAMES, Command, Option, help_pages

MODULES = (bench, demo, evaluate, gen, shard, show, train)


def commands() -> list[click.Command]:
    found: list[click.Command] = []
    for module in MODULES:
        main = module.main
        found += main.commands.values() if isinstance(main, click.Group) else [main]
    return found


def own_options(command: click.Command) -> Iterator[Option]:
    return (each for each in command.params if isinstance(each, Option))


def help_of(command: click.Command, option: str = "--help") -> str:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(command, [option], prog_name="name")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_command_gives_hints_for_unknown_options() -> None:
    assert len(commands()) > 20
    assert [each.name for each in commands() if not isinstance(each, Command)] == []


def test_every_option_belongs_to_a_group() -> None:
    for command in commands():
        plain = {each.opts[0] for each in command.params if type(each) is click.Option}
        assert plain <= {"--version", "--help-all"}, command.name


def test_help_names_every_option_and_help_all_describes_it() -> None:
    short = 0
    for command in commands():
        text = help_of(command)
        options = list(own_options(command))
        assert {each.opts[0] for each in options} <= set(re.findall(r"--[a-z-]+", text))
        if all(each.common for each in options):
            continue
        short += 1
        everything = help_of(command, "--help-all")
        for each in options:
            described = re.compile(rf"^  {each.opts[0]}\b", re.MULTILINE)
            assert described.search(everything), each.opts
            assert bool(described.search(text)) == each.common, each.opts
    assert short >= 8


def test_every_command_and_group_accepts_help_all() -> None:
    for command in commands():
        described = help_of(command, "--help-all")
        assert all(each.opts[0] in described for each in own_options(command)), command.name
    assert help_of(train.main, "--help-all") == help_of(train.main)


def test_help_of_a_training_fits_one_screen() -> None:
    text = help_of(train.main.commands["cifar10"])
    assert len(text.splitlines()) <= 55
    assert max(map(len, text.splitlines())) <= 80


def test_help_all_shows_options_in_the_groups_of_the_field() -> None:
    text = help_of(train.main.commands["imagenet"], "--help-all")
    assert re.findall(r"^(\S.*):$", text, re.MULTILINE) == [
        "Data", "Model", "PixMix", "Optimization", "Checkpoints", "Distributed", "Remote shards",
        "Error handling", "Output", "Help", "Examples",
    ]  # fmt: skip


def test_no_line_of_any_help_is_cut_off() -> None:
    pages = help_pages()
    cut = [line for line in pages.splitlines() if line.endswith("...")]
    assert [line for line in cut if not line.startswith("Usage: ")] == []
    assert max(map(len, pages.splitlines())) <= 80


def test_help_describes_the_families_and_kinds_of_the_tables() -> None:
    assert BASELINE_DESCRIPTIONS.keys() == BASELINE_KINDS.keys()
    tables = {
        "fractals": {name: family.about for name, family in FAMILIES.items()},
        "baseline": BASELINE_DESCRIPTIONS,
    }
    for command, rows in tables.items():
        text = " ".join(help_of(gen.main.commands[command]).split())
        for name, about in rows.items():
            assert about
            assert f"{name}: {about}" in text


def test_every_hint_names_an_option_of_a_command() -> None:
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
        (train.main, ["digits", "--accumulate-grad-batches", "2"], "--grad-accum-steps"),
        (train.main, ["digits", "--model-ema"], "--ema-decay"),
        (train.main, ["digits", "--checkpoint-hist", "3"], "--keep-checkpoints"),
        (train.main, ["folder", "--data-dir", "x"], "--data"),
        (train.main, ["folder", "--output", "x"], "--out"),
        (train.main, ["folder", "--weight-deca", "1"], "--weight-decay"),
        (train.main, ["digits", "--gpus", "2"], "torchrun --nproc-per-node"),
        (train.main, ["digits", "--nesterov"], "--optimizer sgd uses Nesterov"),
        (train.main, ["--epochs", "3", "digits"], "digits --epochs"),
        (train.main, ["--epochs", "3"], "cifar10 --epochs"),
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
def test_an_option_of_another_script_gets_the_name_of_ours(
    main: click.Command, words: list[str], suggested: str
) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    option = next(word for word in words if word.startswith("-")).partition("=")[0]
    assert f"'{option}'" in last
    assert suggested in last


def test_an_option_that_resembles_no_other_gets_no_hint() -> None:
    result = CliRunner().invoke(train.main, ["digits", "--qqq"])
    assert result.exit_code == 2
    assert "Did you mean" not in result.stderr


def test_the_error_for_an_unknown_command_lists_the_commands() -> None:
    result = CliRunner().invoke(train.main, ["cifar"])
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert "'cifar'" in last
    assert "cifar10, cifar100" in last
