"""The Python that README.md and docs/how-to.md show runs, on tiny data, as a script of its own."""

import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.cli import shard

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/how-to.md")

NOT_RUN = {
    "from featviz import channel, deepdream": "takes minutes on one core; see test_visualize.py",
}
"""What is not run, by a part of it, and why."""

NEEDED = {"import lightning": "lightning"}
"""Packages that the tests do not bring, by a part of what needs them."""

SMALLER = {
    # All that is replaced before a piece is run, so that it takes seconds.
    "batch_size=256": "batch_size=8",
    "batch_size=64": "batch_size=8",
    "flowers/train": "imagenet/train",
    "flowers/test": "imagenet/train",
    "num_workers=4": "num_workers=2",
    "range(90)": "range(2)",
    "max_epochs=90": "max_epochs=2, accelerator='cpu', logger=False, enable_checkpointing=False",
    "size=(768, 1024)": "size=(48, 64)",
    "s3://bucket/imagenet/train": "shards/imagenet/train",
    "s3://bucket/mixing": "shards/mixing",
    " ...\n": " print(tuple(images.shape), len(images.unique()))\n",
}

BEFORE = {
    # What a piece takes from the text around it.
    "import lightning": """
import lightning
import torch


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3, 2)

    def training_step(self, batch, number):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.last(images.mean((2, 3))), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


model = Model()
""",
    "floats = mix_batch(": """
import numpy as np
import torch
from pixmix import open_mixing_set
mixing_set = open_mixing_set("mixing-set/fractals", 36)
arrays = np.zeros((4, 32, 32, 3), np.uint8)
tensors, indices, device = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), [3, 1, 2, 5], "cpu"
""",
    "mix = BatchPixMix(mixing_set).to(device)\nfor": """
import torch
from pixmix import open_mixing_set
mixing_set = open_mixing_set("mixing-set/fractals", 36)
loader = [(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4), [3, 1, 2, 5])]
device = "cpu"
""",
}

AFTER = {
    # What is asked of it.
    "v2.RandomCrop(32, padding=4)": """
from PIL import Image
mixed, label = transform(Image.open("imagenet/train/a/0.jpg").resize((32, 32)), 5)
assert mixed.shape == (3, 32, 32) and label == 5
""",
    "PixMix(mixing_set, k=4, beta=4, severity=1),\n        v2.Normalize": """
from PIL import Image
assert transform(Image.open("imagenet/train/a/0.jpg")).shape == (3, 224, 224)
""",
    "floats = mix_batch(": "assert floats.shape == (4, 3, 32, 32)",
    "mix = BatchPixMix(mixing_set).to(device)\nfor": "assert images.shape == (4, 3, 32, 32)",
    "genome = draw_genome": "assert image.shape == (48, 64, 3) and preview.shape[1] == 96",
    "tv_tensors.BoundingBoxes": """
assert type(mixed) is tv_tensors.Image and mixed.shape == (3, 40, 60)
assert target["boxes"].tolist() in ([[4, 6, 30, 20]], [[30, 6, 56, 20]])
""",
    "Remote(limit_bytes": "assert len(loader) == 2",
    "flowers/train": "assert len(train) == 2 and len(test) == 2",
}


def pieces() -> list[tuple[str, str]]:
    """Each piece of Python, with its page and line as a name."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
            line = text[: match.start()].count("\n") + 2
            found.append((f"{Path(page).name}:{line}", match[1]))
    assert len(found) >= 11
    return found


PIECES = pieces()
LOOPS = [piece for piece in PIECES if "num_workers=" in piece[1] and "for " in piece[1]]


def parts_for(table: Mapping[str, str], piece: str) -> list[str]:
    return [value for key, value in table.items() if key in piece]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pieces name."""
    folder = tmp_path_factory.mktemp("site")
    generator = np.random.default_rng(0)
    names = [f"imagenet/train/{name}/{i}.jpg" for name in "ab" for i in range(8)]
    names += [f"mixing-set/fractals/{i}.jpg" for i in range(3)]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((280, 260)).save(path)
    for arguments in (
        ["imagefolder", folder / "imagenet", folder / "shards/imagenet", "--shard-size", "2"],
        ["mixing", folder / "mixing-set/fractals", folder / "shards/mixing"],
    ):
        done = CliRunner().invoke(shard.main, [str(each) for each in arguments])
        assert done.exit_code == 0, done.output
    return folder


def run(piece: str, site: Path, method: str | None = None) -> str:
    """Run a piece as a script in the folder; method: by which processes start, None for fork."""
    for old, new in SMALLER.items():
        piece = piece.replace(old, new)
    starts = site / f"start-{method}"
    starts.mkdir(exist_ok=True)
    start = f"import multiprocessing; multiprocessing.set_start_method({method or 'fork'!r})"
    (starts / "sitecustomize.py").write_text(start)
    script = site / "script.py"
    script.write_text(
        "\n".join([*parts_for(BEFORE, piece), piece, *parts_for(AFTER, piece)]) + "\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=site, capture_output=True, text=True, timeout=300,
        env={"PATH": "/usr/bin:/bin", "HOME": str(site), "PIXMIX_CACHE": str(site / "cache"),
             "PYTHONPATH": f"{starts}:{ROOT}", "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_not_run_is_there_and_has_a_reason() -> None:
    for table in (NOT_RUN, NEEDED, BEFORE, AFTER):
        for part in table:
            assert sum(part in piece for _, piece in PIECES) == 1, part
    for old in SMALLER:
        assert any(old in piece for _, piece in PIECES), old


@pytest.mark.slow
@pytest.mark.parametrize("piece", [piece for _, piece in PIECES], ids=[name for name, _ in PIECES])
def test_a_shown_piece_runs(piece: str, site: Path) -> None:
    for reason in parts_for(NOT_RUN, piece):
        pytest.skip(reason)
    for package in parts_for(NEEDED, piece):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    run(piece, site)


def test_a_shown_loop_with_workers_has_the_guard() -> None:
    assert len(LOOPS) >= 2
    for _, piece in LOOPS:
        before, guard, _ = piece.partition('if __name__ == "__main__":')
        assert guard
        assert not re.search(r"^ *for ", before, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("piece", [piece for _, piece in LOOPS], ids=[name for name, _ in LOOPS])
def test_a_shown_loop_runs_where_processes_do_not_start_by_fork(
    piece: str, method: str, site: Path
) -> None:
    printed = run(piece, site, method).splitlines()
    assert len(printed) >= 2
    for line in printed:
        shape, levels = re.fullmatch(r"(\(.*\)) (\d+)", line).groups()  # type: ignore[union-attr]
        assert shape == "(8, 3, 224, 224)"
        assert int(levels) > 100
