"""Installation: imports, extras, and commands that work without optional packages."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from torch.distributed.run import get_args_parser

from pipelines.cli.help_pages import help_pages
from pixmix.commands import MODULES

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
def test_help_imports_no_heavy_modules(script: str, target: str) -> None:
    module, function = target.split(":")
    code = f"""
import sys
from importlib import import_module
command = import_module({MODULES[script]!r}).main
subcommands = getattr(command, "commands", {{}})
for arguments in [[], *([name] for name in subcommands)]:
    sys.argv = [{script!r}, *arguments, "--help"]
    try:
        getattr(import_module({module!r}), {function!r})()
    except SystemExit as end:
        assert end.code == 0
"""
    assert not modules_after(code) & HEAVY


def test_every_script_runs_the_module_of_its_command() -> None:
    assert set(PROJECT["scripts"]) == set(MODULES)
    for script, target in PROJECT["scripts"].items():
        module, function = target.split(":")
        entry = getattr(import_module(module), function)
        assert entry.args == (script,)
        assert f"{function}" == MODULES[script].rpartition(".")[2]


@pytest.mark.parametrize("package", ["fractals", "pipelines", "pixmix"])
def test_importing_a_package_does_not_import_torch(package: str) -> None:
    assert not modules_after(f"import {package}") & {"torch", "torchvision"}


def test_rendering_fractals_imports_neither_torch_nor_matplotlib() -> None:
    loaded = modules_after(
        "from pipelines.generate.generators import FractalGenerator\n"
        "FractalGenerator(height=16, width=24, samples_per_pixel=1).generate(range(1)).__next__()"
    )
    assert not loaded & {"torch", "torchvision", "matplotlib", "webdataset"}


WITHOUT_TORCH = {"torch", "torchvision", "safetensors", "webdataset"}


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run commands as if torch and the packages around it were not installed."""
    folder = tmp_path_factory.mktemp("without-torch")
    for name in WITHOUT_TORCH:
        absent = f"raise ModuleNotFoundError({f'No module named {name!r}'!r}, name={name!r})\n"
        (folder / f"{name}.py").write_text(absent)
    paths = os.pathsep.join([str(folder), str(ROOT)])

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", MODULES[script], *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_fractals_are_rendered_verified_and_sharded_without_torch(
    tmp_path: Path, without_torch: Callable[..., Any]
) -> None:
    fractals, shards = tmp_path / "fractals", tmp_path / "shards"
    for command in (
        ("pixmix-gen", "fractals", "--n", 3, "--size", 64, "--jobs", 1, "--out", fractals),
        ("pixmix-gen", "verify", fractals, "--regenerate", 1),
        ("pixmix-shard", "mixing", fractals, shards),
        ("pixmix-shard", "verify", shards),
    ):
        done = without_torch(*command)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [("pixmix-show", "set", "."), ("pixmix-eval", "--checkpoint", "x", "--data", ".")]
)
def test_a_command_that_needs_torch_says_so_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    without_torch: Callable[..., Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").touch()
    done = without_torch(*command)
    assert done.returncode == 1
    assert "needs torch" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_pages_name_all_dependencies_that_are_needed_without_torch() -> None:
    names = {re.split(r"[<>=\[ ]", each)[0] for each in PROJECT["dependencies"]} - WITHOUT_TORCH
    lines = (ROOT / "docs" / "how-to" / "install.md").read_text().splitlines()
    after = lines[lines.index("pip install --no-deps pixmix") + 1]
    assert set(after.split()) == {"pip", "install", *names}


def test_make_demo_installs_no_development_tools(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for target, extra in (("demo", "demo"), ("test", "dev")):
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert re.findall(r"--editable '\.\[(\w+)\]'", done.stdout) == [extra]


def test_importing_fractals_does_not_import_pillow() -> None:
    assert "PIL" not in modules_after("import fractals")


def test_the_documented_extras_exist() -> None:
    extras = set(PROJECT["optional-dependencies"])
    assert {"featviz", "fast", "viz", "cluster", "corruptions", "s3", "dev"} <= extras


def test_every_command_in_the_readme_is_a_script() -> None:
    words = (ROOT / "README.md").read_text().replace("`", " ").split()
    named = {word for word in words if word.startswith("pixmix-")}
    assert named
    assert named <= set(PROJECT["scripts"])


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINES, LINES_OF_TORCHRUN, PIECES = 120, 13, 20
"""Lower bounds of what the pages have, so that the search does not overlook them."""


FENCED = re.compile(r"```.*?```", re.DOTALL)


def every_command(script: str) -> Iterator[tuple[str, click.Command]]:
    """Yield each command of a script with its path, groups included."""
    waiting = [(script, import_module(MODULES[script]).main)]
    for path, command in waiting:
        yield path, command
        waiting += [
            (f"{path} {name}", part) for name, part in getattr(command, "commands", {}).items()
        ]


COMMANDS = [each for script in sorted(PROJECT["scripts"]) for each in every_command(script)]


def joined(text: str) -> list[str]:
    """Return the lines of a text; a line that ends in a backslash is joined with the next."""
    return [line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines()]


def documented_lines() -> set[str]:
    """Return the command lines of README, pages and help, each of which is a line of its own."""
    # In the page of commands, a line of text may begin with the name of a command.
    texts = [page.read_text() for page in PAGES if page.name != "commands.md"]
    texts += [each.epilog or "" for _, each in COMMANDS]
    return {
        line
        for text in texts
        for line in joined(text)
        if re.match(r"(srun |torchrun --|pixmix-)", line)
    }


def documented_pieces() -> set[str]:
    """Return the commands in running text, with or without their required options."""
    pieces = set()
    for page in PAGES:
        bare = FENCED.sub("", page.read_text())
        bare = "\n".join(line for line in bare.splitlines() if not line.startswith("    "))
        pieces |= set(re.findall(r"`((?:pixmix-[a-z]+|torchrun|srun)\s[^`]+)`", bare))
    return {" ".join(piece.split()) for piece in pieces}


def script_and_arguments(line: str) -> tuple[str, list[str]]:
    """Split a line into a script and its arguments, and check the options of torchrun."""
    words = shlex.split(re.sub(r"\$\(.*\)", "host", line.partition(" > ")[0]))
    if words[0] == "srun":
        words = words[1:]
    if words[0] != "torchrun":
        return words[0], words[1:]
    get_args_parser().parse_args(words[1:])
    place = next(place for place, word in enumerate(words) if word in MODULES)
    assert "--no-python" in words[:place]
    return words[place], words[place + 1 :]


def check_valid(line: str) -> None:
    """Parse the options of a command line without running the command.

    Raises:
        click.ClickException: if they are not valid.
    """
    script, arguments = script_and_arguments(line)
    command = import_module(MODULES[script]).main
    with command.make_context(script, list(arguments)) as context:
        if isinstance(command, click.Group):
            given = [*context._protected_args, *context.args]
            name, subcommand, rest = command.resolve_command(context, given)
            assert subcommand.make_context(name, rest, parent=context).params


@pytest.fixture
def existing_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every path of a command line exist: what is checked are commands, options and values."""
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, _param, _ctx: Path(value))


@pytest.mark.usefixtures("existing_paths")
def test_every_documented_command_line_is_valid() -> None:
    lines = documented_lines()
    assert len(lines) >= LINES
    assert sum(line.startswith(("torchrun", "srun")) for line in lines) >= LINES_OF_TORCHRUN
    for line in lines:
        try:
            check_valid(line)
        except click.ClickException as error:
            raise AssertionError(f"{line}: {error.message}") from error


@pytest.mark.usefixtures("existing_paths")
def test_every_command_in_running_text_is_valid() -> None:
    pieces = documented_pieces()
    assert len(pieces) >= PIECES
    for piece in pieces:
        try:
            check_valid(piece.partition(" ...")[0])
        except (click.MissingParameter, click.BadOptionUsage):
            pass  # Running text may leave out required options, the value of an option,
        except click.NoSuchOption as error:
            # and the subcommand.
            if "Options follow the command" not in error.message:
                raise
        except click.exceptions.Exit as end:
            assert end.exit_code == 0, piece  # noqa: PT017
        except click.exceptions.NoArgsIsHelpError:
            pass


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_every_command_and_option_has_help_and_every_command_an_example(
    path: str, command: click.Command
) -> None:
    assert command.help
    assert path.split()[0] in (command.epilog or ""), "an example"
    for option in command.params:
        if isinstance(option, click.Option):
            assert (option.help or "").strip(), f"{path} {option.opts[0]}"


def shown_python() -> list[tuple[Path, str]]:
    """Return the Python blocks of README and pages."""
    found = [
        (page, piece)
        for page in PAGES
        for piece in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    assert len(found) >= 12
    return found


def test_every_python_block_compiles() -> None:
    for page, piece in shown_python():
        compile(piece, str(page), "exec")
    for page in PAGES:
        # Every block is fenced, so that it is highlighted.
        assert not re.search(
            r"^    (from \w+ import|import) ", FENCED.sub("", page.read_text()), re.M
        )


def test_every_import_in_a_python_block_works() -> None:
    imports = {
        ast.unparse(node)
        for _, piece in shown_python()
        for node in ast.walk(ast.parse(piece))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert len(imports) >= 12
    for line in imports:
        package = line.split()[1].partition(".")[0]
        if package in ("timm", "lightning") and find_spec(package) is None:
            continue
        exec(line, {})  # the project's own pages


@pytest.mark.parametrize("package", ["fractals", "featviz", "pixmix", "pipelines"])
def test_every_package_is_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]
    assert package in wheel["wheel"]["packages"]


def test_the_page_of_commands_equals_the_help() -> None:
    # Compared by words, because line breaks may differ between versions of click.
    kept = (ROOT / "docs" / "commands.md").read_text()
    assert kept.split() == help_pages().split(), "run make help-pages"
    for script in PROJECT["scripts"]:
        assert f"\n## {script}\n" in kept


def named_tests(text: str) -> list[tuple[str, str]]:
    """Return the tests that a page names as (file, name), and check that they exist."""
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / "tests" / file).is_file()
        or f"def {test}(" not in (ROOT / "tests" / file).read_text()
    ]
    assert missing == []
    return named


def test_the_differences_from_the_released_code_name_tests_that_exist() -> None:
    text = (ROOT / "docs" / "how-to" / "differences.md").read_text()
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and "checked by" not in line
    ]
    assert len(rows) >= 25
    assert all(row.count("|") == 5 for row in rows)
    assert len(named_tests(text)) >= 18


def test_each_law_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "laws.md").read_text()
    assert len(named_tests(text)) >= 20
    laws = text.split("\n## ")[1:]
    assert len(laws) == 7
    assert all("`test_" in law for law in laws)
