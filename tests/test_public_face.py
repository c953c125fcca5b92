"""The public names of `pixmix`, for programs and type checkers, and shadowed packages."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest

import pipelines
import pixmix
from pixmix.commands import MODULES, PACKAGES, import_sibling

ROOT = Path(__file__).parent.parent


def python(
    *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with this project installed behind it on the path."""
    site = folder.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(f"import sys; sys.path.append({str(ROOT)!r})\n")
    paths = [str(site)] if environment is None else [environment["PYTHONPATH"], str(site)]
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": ":".join(paths)},
        check=False,
    )  # fmt: skip


def folder_with(tmp_path: Path, name: str, content: str = "") -> Path:
    """Return a folder that contains a package, or with .py a module, of a name."""
    folder = tmp_path / "project"
    file = folder / name if name.endswith(".py") else folder / name / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    return folder


# --- Names ---------------------------------------------------------------------------------------


def test_the_public_names_are_complete() -> None:
    assert set(pixmix.__all__) == {
        "BatchPixMix", "PixMix", "PixMixSettings", "draw_genome", "eval_loader",
        "mix_batch", "open_mixing_set", "render", "train_loader",
    }  # fmt: skip
    for name in pixmix.__all__:
        assert getattr(pixmix, name) is not None
        assert name in dir(pixmix)
    assert pixmix.open_mixing_set is pipelines.open_mixing_set
    with pytest.raises(AttributeError, match="PixMixx"):
        pixmix.PixMixx  # noqa: B018


def test_the_version_is_defined_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    path = project["tool"]["hatch"]["version"]["path"]
    assert "version" in project["project"]["dynamic"]
    assert f'__version__ = "{pixmix.__version__}"' in (ROOT / path).read_text()
    assert pipelines.__version__ == pixmix.__version__
    for name in ("fractals", "featviz", "pixmix", "pipelines"):
        for file in (ROOT / name).rglob("*.py"):
            assert file == ROOT / path or not re.search(r"__version__ = ", file.read_text()), file


def test_only_two_modules_of_pixmix_import_sibling_packages() -> None:
    """The import contract does not see imports by name; see pyproject.toml."""
    known = {"__init__.py", "commands.py"}
    for file in (ROOT / "pixmix").glob("*.py"):
        if file.name not in known:
            text = file.read_text()
            assert "import_module" not in text, file
            assert "import_sibling" not in text, file


TYPED = """
from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from pixmix import (
    BatchPixMix, PixMix, PixMixSettings, __version__, draw_genome, eval_loader,
    mix_batch, open_mixing_set, render, train_loader,
)
from pipelines import CIFAR, Remote


class Images(Dataset[Image.Image]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Image.Image:
        return Image.new("RGB", (40, 40))


image, array, tensor = Image.new("RGB", (32, 32)), np.zeros((32, 32, 3), np.uint8), torch.zeros(3)
for transform in (
    PixMix(), PixMix(Images()), PixMix([image]), PixMix([array]), PixMix(views=3),
    PixMix(open_mixing_set("folder", 36), dtype=torch.uint8),
):
    assert_type(transform(image), torch.Tensor)
    assert_type(transform(array), torch.Tensor)
    assert_type(transform(tensor, key=(0, 1, 2)), torch.Tensor)
    assert_type(transform(image, 5), tuple[torch.Tensor, int])
    assert_type(transform(tensor, 5, "a"), tuple[torch.Tensor, int, str])
    assert_type(transform((image, 5)), tuple[torch.Tensor, int])
    assert_type(transform((tensor, 5, "a")), tuple[torch.Tensor, int, str])
    assert_type(transform({"image": image}), dict[str, Any])
    assert_type(transform([image, 5]), list[Any])
assert_type(mix_batch(array, None, [1], seed=0, epoch=0, settings=PixMixSettings()), torch.Tensor)
assert_type(__version__, str)
assert_type(render(draw_genome(seed=0, index=1), size=8), NDArray[np.uint8])
"""

WRONG = {
    "from pixmix import PixMixx": "PixMixx",
    "import pixmix\npixmix.open_mixing_sett": "open_mixing_sett",
    "from pipelines import train_loaderr": "train_loaderr",
    "from pixmix import PixMix\nPixMix(severty=3)": "severty",
    "from pixmix import PixMix\nPixMix()('cat.jpg')": "__call__",
    "from pixmix import PixMix\nPixMix()()": "__call__",
}


@pytest.mark.slow
def test_type_checkers_know_the_public_names_and_reject_others(tmp_path: Path) -> None:
    """Run mypy once, because it is slow, on a valid file and a file for each mistake."""
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(TYPED)
    for number, code in enumerate(WRONG):
        (tmp_path / f"wrong_{number}.py").write_text(code + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir",
         tmp_path / "cache", *sorted(tmp_path.glob("*.py"))],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert not [line for line in lines if "right.py" in line], done.stdout
    for number, named in enumerate(WRONG.values()):
        found = [line for line in lines if f"wrong_{number}.py" in line and ": error:" in line]
        assert any(named in line for line in found), (named, done.stdout)


# --- Shadowed packages ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pipelines", "fractals", "featviz", "pipelines.py"])
def test_importing_a_name_reports_the_package_that_shadows_ours(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path, name)
    shadowed = name.removesuffix(".py")
    for public in ("open_mixing_set", "draw_genome"):
        done = python("-c", f"from pixmix import {public}", folder=folder)
        last = done.stderr.splitlines()[-1]
        assert last.startswith("ImportError: ")
        assert str(folder / name) in last
        assert f"'{shadowed}'" in last
        assert "rename it" in last


def test_names_of_pixmix_itself_work_despite_a_shadowed_sibling(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "pipelines")
    assert python("-c", "from pixmix import PixMix", folder=folder).returncode == 0


@pytest.mark.parametrize("script", sorted(MODULES))
def test_a_command_reports_a_shadowed_package_in_one_line(tmp_path: Path, script: str) -> None:
    entry = MODULES[script].rpartition(".")[2]
    code = f"import sys; from pixmix.commands import {entry}; sys.argv[1:] = ['--help']; {entry}()"
    name = PACKAGES[sorted(MODULES).index(script) % len(PACKAGES)]
    folder = folder_with(tmp_path, name)
    # -P leaves out the working folder, as for an installed script.
    done = python("-P", "-c", code, folder=folder)
    assert done.returncode == 0, done.stderr
    done = python("-P", "-c", code, folder=folder, environment={"PYTHONPATH": str(folder)})
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {folder / name}")


def test_a_module_reports_a_shadowed_package_in_one_line(
    tmp_path: Path,
) -> None:
    folder = folder_with(tmp_path, "fractals")
    done = python("-m", "pipelines.cli.gen", "fractals", "--help", folder=folder)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {folder / 'fractals'}")


def test_a_folder_without_python_files_does_not_shadow_a_package(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in PACKAGES:
        (folder / name).mkdir(parents=True)
        (folder / name / "image.jpg").touch()
    done = python("-m", "pipelines.cli.gen", "fractals", "--help", folder=folder)
    assert done.returncode == 0, done.stderr


def test_an_overwritten_package_is_reported_with_a_remedy(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "other")
    overwrite = "import pipelines; del pipelines.__version__; "
    done = python("-c", f"{overwrite}import pixmix; pixmix.train_loader", folder=folder)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: cannot import name '__version__'")
    assert "overwritten" in last
    assert "--force-reinstall" in last
    code = f"{overwrite}from pixmix.commands import gen; gen()"
    done = python("-c", code, folder=folder)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: cannot import name '__version__'")


def test_other_import_errors_are_not_changed() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        import_sibling("no_such_package")
    assert caught.value.name == "no_such_package"


def test_commands_of_the_demo_run_despite_a_shadowing_package(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "pipelines")
    code = (
        "from pathlib import Path\n"
        "from pipelines.cli.demo import Stage, run_command\n"
        "stage = Stage(name='help', command=lambda: ['pixmix-gen', '--help'], "
        "result=Path('result'))\n"
        "print(run_command(stage))"
    )
    done = python("-P", "-c", code, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "fractals" in done.stdout


def test_the_modules_of_the_commands_exist() -> None:
    for module in MODULES.values():
        assert callable(import_module(module).main)
