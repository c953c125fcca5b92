"""The wheel and the source distribution: they build, are valid, and hold what they need."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("hatchling")
pytest.importorskip("twine")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return folder


def names_of(built: Path, pattern: str) -> set[str]:
    """Return the files of a distribution, without the folder around them."""
    (path,) = built.glob(pattern)
    if path.suffix == ".whl":
        return set(zipfile.ZipFile(path).namelist())
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def test_twine_accepts_both_distributions(built: Path) -> None:
    files = [str(path) for path in built.iterdir()]
    assert len(files) == 2
    subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], check=True,
        capture_output=True,
    )  # fmt: skip


def test_the_source_distribution_holds_all_tracked_files(built: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a clone")
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    missing = tracked - names_of(built, "*.tar.gz")
    assert len(tracked) > 200
    assert {name for name in missing if not name.startswith(".")} == set()


def test_the_wheel_holds_the_packages_and_nothing_else(built: Path) -> None:
    names = names_of(built, "*.whl")
    tops = {name.partition("/")[0] for name in names}
    (info,) = {top for top in tops if re.fullmatch(r"pixmix-.*\.dist-info", top)}
    assert tops == {"fractals", "featviz", "pixmix", "pipelines", info}
    for package in ("fractals", "featviz", "pixmix", "pipelines"):
        assert f"{package}/py.typed" in names
    for data in ("pipelines/report/page.html.jinja", "pipelines/evaluation/imagenet_classes.txt"):
        assert data in names
    assert f"{info}/licenses/LICENSE" in names
    assert not [name for name in names if name.endswith((".nbi", ".nbc", ".pyc"))]
