import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest

from pipelines.cli import gen
from pipelines.cli.help_pages import help_pages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = {"numpy", "numba", "torch", "torchvision", "PIL", "scipy", "matplotlib", "tqdm"}


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after some code."""
    report = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    output = subprocess.run(
        [sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return set(output.splitlines()[-1].split())


@pytest.mark.parametrize(("script", "target"), sorted(PROJECT["scripts"].items()))
def test_help_of_a_command_loads_nothing_heavy(script: str, target: str) -> None:
    module, function = target.split(":")
    code = f"""
from importlib import import_module
command = getattr(import_module({module!r}), {function!r})
subcommands = getattr(command, "commands", {{}})
for arguments in [[], *([name] for name in subcommands)]:
    try:
        command.main([*arguments, "--help"], prog_name={script!r})
    except SystemExit as end:
        assert end.code == 0
"""
    assert not modules_after(code) & HEAVY


@pytest.mark.parametrize("package", ["fractals", "pipelines"])
def test_a_package_does_not_load_torch(package: str) -> None:
    assert not modules_after(f"import {package}") & {"torch", "torchvision"}


def test_painting_fractals_loads_neither_torch_nor_plots() -> None:
    loaded = modules_after(
        "from pipelines.generate.fractals import FractalPainter\n"
        "FractalPainter(height=16, width=24, samples_per_pixel=1).paint(range(1)).__next__()"
    )
    assert not loaded & {"torch", "torchvision", "matplotlib", "webdataset"}


def test_fractals_does_not_load_pillow() -> None:
    assert "PIL" not in modules_after("import fractals")


def test_the_documented_extras_exist() -> None:
    extras = set(PROJECT["optional-dependencies"])
    assert {"featviz", "fast", "viz", "cluster", "corruptions", "s3", "gcs", "dev"} <= extras


def test_every_command_in_the_readme_is_a_script() -> None:
    words = (ROOT / "README.md").read_text().replace("`", " ").split()
    named = {word for word in words if word.startswith("pixmix-")}
    assert named
    assert named <= set(PROJECT["scripts"])


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def documented_commands() -> list[str]:
    """Return the command lines that the README, the pages and the helps show."""
    lines = [line for page in PAGES for line in page.read_text().splitlines()]
    for command in gen.main.commands.values():
        lines += (command.epilog or "").splitlines()
    return sorted({line.strip() for line in lines if line.strip().startswith("pixmix-")})


def test_every_documented_command_line_is_one_that_the_command_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documented = documented_commands()
    # Commands that read a set or a file want it to be there.
    for folder in (
        "mixing-set/fractals",
        "mixing-set/featviz",
        "mixing-set/dead-leaves",
        "runs/plain/checkpoints",
        "my-pictures",
        "ROOT",
        "runs/cifar10/checkpoints",
        "photographs",
        "mixing-set",
        "shards",
        "shards/cifar10",
        "imagenet",
        "runs/digits/checkpoints",
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for file in (
        "some-jpegs.tar",
        "imagenet-0000.tar",
        "genome.json",
        "FILE",
        "runs/cifar10/checkpoints/step-00039000.pt",
        "runs/plain/checkpoints/step-00003900.pt",
        "photograph.jpg",
        "ours.pt",
        "theirs.pt",
        "runs/digits/checkpoints/step-00000880.pt",
    ):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    assert len(documented) >= 3
    for line in documented:
        script, *arguments = shlex.split(line.partition(" > ")[0])
        module, function = PROJECT["scripts"][script].split(":")
        command = getattr(import_module(module), function)
        with command.make_context(script, list(arguments)) as context:
            if not isinstance(command, click.Group):
                continue
            given = [*context._protected_args, *context.args]
            name, subcommand, rest = command.resolve_command(context, given)
            # Reads and checks the options, and does not run the command.
            assert subcommand.make_context(name, rest, parent=context).params


def test_every_piece_of_python_that_is_shown_is_python() -> None:
    pieces = 0
    for page in PAGES:
        for piece in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            compile(piece, str(page), "exec")
            pieces += 1
    assert pieces >= 6


def test_what_is_said_of_detection_runs() -> None:
    text = (ROOT / "docs" / "how-to.md").read_text().partition("## Detection")[2]
    piece = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    names: dict[str, object] = {}
    exec(compile(piece, "how-to.md", "exec"), names)  # the project's own page
    mixed = names["mixed"]
    assert mixed.shape == (3, 40, 60)  # type: ignore[attr-defined]
    assert names["boxes"] == [[4, 6, 30, 20]]


def test_the_page_of_commands_says_what_the_helps_say() -> None:
    # Word by word: where a line is broken is click's affair.
    kept = (ROOT / "docs" / "commands.md").read_text()
    assert kept.split() == help_pages().split(), "run make help-pages"
    for script in PROJECT["scripts"]:
        assert f"\n## {script}\n" in kept


def test_each_law_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "laws.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) >= 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
    laws = text.split("\n## ")[1:]
    assert len(laws) == 7
    assert all("`test_" in law for law in laws)
