"""`pixmix-show genome`: the figure and the page show the genome's parameters."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fractals import Genome, draw_genome, render
from fractals.chaos import Camera, ChaosLayer, Map, VariationTerm
from fractals.escape import EscapeLayer
from pipelines.cli import gen, show
from pipelines.errors import PipelineError
from pipelines.report.genome import (
    ReadGenome,
    alone,
    described,
    figure,
    layer_image,
    parallelograms,
    read_genome,
)
from pipelines.shards.format import FORMAT


def run(*arguments: object) -> Result:
    return CliRunner().invoke(show.main, ["genome", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of five images."""
    out = tmp_path_factory.mktemp("set") / "fractals"
    arguments = ["fractals", "--n", "5", "--size", "32", "--out", str(out), "--jobs", "1"]
    assert CliRunner().invoke(gen.main, arguments).exit_code == 0
    return out


@pytest.fixture(scope="module")
def genomes() -> list[Genome]:
    return [draw_genome(seed=0, index=index) for index in range(16)]


def chaos(maps: tuple[Map, ...], camera: Camera) -> ChaosLayer:
    drawn = draw_genome(seed=0, index=0, family="ifs").layers[0].fractal
    assert isinstance(drawn, ChaosLayer)
    return replace(drawn, maps=maps, camera=camera)


def test_a_genome_is_read_from_a_file_or_a_dataset(folder: Path, tmp_path: Path) -> None:
    for index in (0, 4):
        expected = draw_genome(seed=0, index=index)
        assert read_genome(folder, index) == ReadGenome(genome=expected, shape=(32, 32))
        path = tmp_path / f"{index}.json"
        path.write_text(json.dumps(expected.to_json()))
        assert read_genome(path, None) == ReadGenome(genome=expected, shape=(1, 1))


def test_a_parallelogram_is_the_window_under_the_affine_parts_of_a_map() -> None:
    maps = (
        Map(affine=(1, 0, 0, 0, 1, 0)),
        Map(affine=(0, -1, 2, 1, 0, 3)),  # a quarter turn, then a translation
        Map(affine=(2, 0, 0, 0, 1, 0), post=(1, 0, 1, 0, -1, 0)),
        Map(affine=(1, 0, 0, 0, 1, 0), variations=(VariationTerm(name="spherical", weight=1.0),)),
    )
    window, same, turned, mirrored, bent = parallelograms(
        chaos(maps, Camera(centre=(1.0, 2.0), width=2.0))
    )
    assert window.tolist() == [[0, 1], [2, 1], [2, 3], [0, 3]]
    assert np.array_equal(same, window)
    assert np.array_equal(bent, window)
    assert turned.tolist() == [[1, 3], [1, 5], [-1, 5], [-1, 3]]
    assert mirrored.tolist() == [[1, -1], [5, -1], [5, -3], [1, -3]]


def test_the_window_rotates_with_the_camera() -> None:
    camera = Camera(centre=(0.0, 0.0), width=2.0, rotation=math.pi / 2)
    window = parallelograms(chaos((Map(affine=(1, 0, 0, 0, 1, 0)),), camera))[0]
    np.testing.assert_allclose(window[0], [1, -1], atol=1e-12)
    np.testing.assert_allclose(np.abs(window), 1, atol=1e-12)


def test_the_window_has_the_aspect_ratio_of_the_image() -> None:
    layer = chaos((Map(affine=(1, 0, 0, 0, 1, 0)),), Camera(centre=(0.0, 0.0), width=2.0))
    for shape, corner in (((20, 30), [-1.5, -1]), ((60, 20), [-1, -3]), ((7, 7), [-1, -1])):
        np.testing.assert_allclose(parallelograms(layer, shape)[0][0], corner)


def test_an_image_of_a_dataset_is_drawn_with_its_aspect_ratio(tmp_path: Path) -> None:
    out, drawn = tmp_path / "wide", tmp_path / "genome.png"
    words = ["fractals", "--n", "1", "--size", "48x32", "--out", str(out), "--jobs", "1"]
    assert CliRunner().invoke(gen.main, words).exit_code == 0
    read = read_genome(out, 0)
    assert read.shape == (32, 48)
    assert run(out, "--index", 0, "--out", drawn, "--size", 96).exit_code == 0
    pixels = np.asarray(Image.open(drawn))
    expected = render(read.genome, size=(64, 96))
    assert np.array_equal(pixels[58 : 58 + 64, 24 : 24 + 96], expected)


def test_maps_to_huge_coordinates_are_drawn_without_a_warning(tmp_path: Path) -> None:
    document = draw_genome(seed=0, index=0, family="ifs").to_json()
    document["layers"][0]["fractal"]["maps"][0]["affine"] = [3e38] * 6
    (tmp_path / "far.json").write_text(json.dumps(document))
    out = tmp_path / "far.png"
    result = run(tmp_path / "far.json", "--out", out, "--size", 64, "--html", tmp_path / "f.html")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""


def test_a_map_to_huge_coordinates_is_drawn_on_the_right_side() -> None:
    far = Map(affine=(5e11, 0, 5e11, 0, 0.5, 0))  # from 0 to 1e12, and half as high
    genome = draw_genome(seed=0, index=0, family="ifs")
    layer = replace(genome.layers[0], fractal=chaos((far,), Camera(centre=(0.0, 0.0), width=2.0)))
    drawn = np.asarray(layer_image(replace(genome, layers=(layer,)), 0))
    left, right = drawn[95, 212 + 40], drawn[95, 212 + 160]
    assert left.tolist() == [255, 255, 255]
    assert right.tolist() != [255, 255, 255]


def test_a_layer_alone_is_rendered_over_the_background(genomes: list[Genome]) -> None:
    several = [genome for genome in genomes if len(genome.layers) > 1]
    assert several
    for genome in several[:2]:
        for number, layer in enumerate(genome.layers):
            one = alone(genome, number)
            assert [each.fractal for each in one.layers] == [layer.fractal]
            assert (one.layers[0].blend, one.layers[0].opacity) == ("over", 1.0)
            assert one.background == genome.background


def test_each_layer_is_described_and_each_map_has_a_line(genomes: list[Genome]) -> None:
    kinds = set()
    for genome in genomes:
        for layer in genome.layers:
            lines = described(layer)
            assert lines[1] == f"{layer.blend}, opacity {layer.opacity:.2f}"
            fractal = layer.fractal
            kinds.add(type(fractal))
            if isinstance(fractal, EscapeLayer):
                assert f"{fractal.formula} of power {fractal.power}" in lines[0]
                continue
            assert f"{len(fractal.maps)} map" in lines[0]
            maps = lines[3 : 3 + len(fractal.maps)]
            for number, (line, each) in enumerate(zip(maps, fractal.maps, strict=True), 1):
                assert line.startswith(f"{number}  ")
                for term in each.variations:
                    assert f"{term.name} {term.weight:.2f}" in line
            assert len(lines) == 3 + len(fractal.maps) + (fractal.final is not None)
    assert kinds == {ChaosLayer, EscapeLayer}


def test_the_figure_has_the_image_and_a_panel_for_each_layer(genomes: list[Genome]) -> None:
    for layers in (1, 2):
        genome = next(each for each in genomes if len(each.layers) == layers)
        drawn = np.asarray(figure(genome, 96))
        assert np.array_equal(drawn[58 : 58 + 96, 24 : 24 + 96], render(genome, size=96))
        left = 24 + 96 + 24
        for number in range(layers):
            expected = render(alone(genome, number), size=200)
            starts = [
                top
                for top in range(58, drawn.shape[0] - 199)
                if np.array_equal(drawn[top : top + 200, left : left + 200], expected)
            ]
            assert len(starts) == 1


def test_the_command_draws_the_figure_and_prints_the_genome(folder: Path, tmp_path: Path) -> None:
    out, html = tmp_path / "new" / "genome.png", tmp_path / "genome.html"
    result = run(folder, "--index", 3, "--out", out, "--size", 96, "--html", html, "--json")
    assert result.exit_code == 0, result.output
    genome = draw_genome(seed=0, index=3)
    assert json.loads(result.stdout)["genome"] == genome.to_json()
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(figure(genome, 96)))
    assert html.read_text().count("<img ") == 1 + len(genome.layers)


def test_user_errors_are_one_line_with_their_exit_code(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    genome = draw_genome(seed=0, index=0).to_json()
    files = {
        "whole.json": json.dumps(genome),
        "junk.json": "{",
        "list.json": "[]",
        "other.json": json.dumps({**genome, "version": 99}),
        "less.json": json.dumps({key: genome[key] for key in genome if key != "layers"}),
        "featviz.json": json.dumps({"genome": None}),
        "deep.json": "[" * 100_000,
        "deeper.json": json.dumps({**genome, "family": "x"}).replace('"x"', "[" * 700 + "]" * 700),
        "far.json": json.dumps(genome).replace('"affine": [', '"affine": [1e300, ', 1),
    }
    (tmp_path / "bytes.json").write_bytes(b"\xff\x00")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "folder").mkdir()
    cases: list[tuple[int, str, list[object]]] = [
        (1, "has many images", [folder]),
        (1, "has no image 5", [folder, "--index", 5]),
        (1, "is not a complete dataset", [tmp_path / "folder", "--index", 0]),
        (1, "has a single genome; omit --index", [tmp_path / "whole.json", "--index", 0]),
        (1, "junk.json is damaged", [tmp_path / "junk.json"]),
        (1, "list.json has no genome", [tmp_path / "list.json"]),
        (1, "featviz.json has no genome", [tmp_path / "featviz.json"]),
        (1, "99: not a supported genome version", [tmp_path / "other.json"]),
        (1, "the genome's JSON does not match", [tmp_path / "less.json"]),
        (1, "bytes.json is damaged", [tmp_path / "bytes.json"]),
        (1, "deep.json", [tmp_path / "deep.json"]),
        (1, "deeper.json: the genome's JSON does not match", [tmp_path / "deeper.json"]),
        (1, "finite in float32", [tmp_path / "far.json"]),
        (
            1,
            "is the manifest of a dataset, not a genome; use its folder",
            [folder / "manifest.json"],
        ),
        (2, "does not exist", [tmp_path / "absent.json"]),
        (2, "--size", [folder, "--index", 0, "--size", 10]),
    ]
    for code, message, arguments in cases:
        result = run(*arguments, "--out", out)
        assert result.exit_code == code, (message, result.output)
        assert message in result.stderr
        assert result.stderr.count("Error: ") == 1
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        assert not out.exists()
    inside = run(folder, "--index", 0, "--out", folder / "images" / "genome.png")
    assert inside.exit_code == 2
    assert "is inside" in inside.stderr


@pytest.mark.parametrize("kind", ["dead-leaves", "spectrum", "noise"])
def test_a_dataset_of_baselines_is_rejected_by_its_kind(tmp_path: Path, kind: str) -> None:
    words = ["baseline", "--kind", kind, "--n", "1", "--size", "32", "--jobs", "1"]
    assert CliRunner().invoke(gen.main, [*words, "--out", str(tmp_path / "set")]).exit_code == 0
    result = run(tmp_path / "set", "--index", 0, "--out", tmp_path / "out.png")
    assert result.exit_code == 1
    assert f'is of kind "{kind}", which has no genomes' in result.stderr


def test_a_dataset_of_feature_visualizations_is_rejected_by_its_kind(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "feature visualizations"}')
    (tmp_path / "metadata.jsonl").write_text('{"recipe": {}}\n')
    with pytest.raises(
        PipelineError, match='is of kind "feature visualizations", which has no genomes'
    ):
        read_genome(tmp_path, 0)


def test_shards_are_rejected(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT}))
    for place, index in ((tmp_path, 0), (manifest, None)):
        with pytest.raises(PipelineError, match="is a dataset of shards"):
            read_genome(place, index)


def test_a_page_does_not_overwrite_the_genome_file(tmp_path: Path) -> None:
    path = tmp_path / "genome.html"
    path.write_text(json.dumps(draw_genome(seed=0, index=0).to_json()))
    before = path.read_bytes()
    result = run(path, "--out", tmp_path / "out.png", "--html", path)
    assert result.exit_code == 2
    assert "genome.html is read as" in result.stderr
    assert path.read_bytes() == before


def test_a_file_that_is_not_json_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff\x00")
    with pytest.raises(PipelineError, match=r"x\.json is damaged"):
        read_genome(tmp_path / "x.json", None)


@pytest.mark.parametrize("name", ["manifest.json", "metadata.jsonl"])
def test_a_named_pipe_in_a_dataset_is_rejected_without_waiting_for_it(
    folder: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(folder, tmp_path / "set", ignore=shutil.ignore_patterns(name))
    os.mkfifo(tmp_path / "set" / name)
    result = run(tmp_path / "set", "--index", 0, "--out", tmp_path / "out.png")
    assert result.exit_code == 1
    assert name in result.stderr
    assert "named pipe" in result.stderr


def test_a_huge_line_is_rejected_before_it_fills_the_memory(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "set", ignore=shutil.ignore_patterns("metadata.jsonl"))
    with (tmp_path / "set" / "metadata.jsonl").open("wb") as file:
        file.truncate(2**40)
    result = run(tmp_path / "set", "--index", 0, "--out", tmp_path / "out.png")
    assert result.exit_code == 1
    assert "metadata.jsonl, line 1 has more than" in result.stderr


def test_an_index_beyond_the_last_is_rejected_at_once(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "--index", 2**60, "--out", tmp_path / "out.png")
    assert result.exit_code == 1
    assert f"has no image {2**60}" in result.stderr


def test_file_names_that_are_not_utf8_are_written_to_page_and_json(
    folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(folder, place)
    out, page = tmp_path / os.fsdecode(b"\xe9.png"), tmp_path / os.fsdecode(b"\xe9.html")
    arguments = [
        "genome",
        place,
        "--index",
        0,
        "--out",
        out,
        "--html",
        page,
        "--json",
        "--size",
        64,
    ]
    result = CliRunner().invoke(show.main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    page.read_text(encoding="utf-8")
    assert json.loads(result.stdout)["out"] == str(out)
