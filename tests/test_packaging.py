import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest

from pipelines.cli import gen

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


def documented_commands() -> list[str]:
    """Return the command lines that the README and the helps show."""
    lines = (ROOT / "README.md").read_text().splitlines()
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
        "runs/plain",
        "shards/cifar10",
        "imagenet",
        "runs/digits/checkpoints",
    ):
        (tmp_path / folder).mkdir(parents=True)
    for file in (
        "some-jpegs.tar",
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
