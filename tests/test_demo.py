"""`pixmix-demo`: a sequence of commands that can be resumed."""

import json
import os
import re
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.cli import demo
from pipelines.cli.demo import Stage, check_extras, main, run_command, run_stages, stages
from pipelines.errors import PipelineError
from pipelines.training.tracking import write_metrics
from pixmix.commands import MODULES


class Chain:
    """Stages a, b and c, each of which writes a file; records what runs and what is shown."""

    def __init__(self, out: Path, words: Sequence[str] = ("a", "b", "c")) -> None:
        self.out = out
        self.ran: list[str] = []
        self.shown: list[tuple[str, bool, str | None]] = []
        self.fails = self.leaves_nothing = ""
        self.stages = [
            Stage(name=word, command=lambda word=word: ["do", word], result=out / word[0])
            for word in words
        ]

    def run(self) -> dict[str, float]:
        return run_stages(self.out, self.stages, run=self._run, show=self._show)

    def _run(self, stage: Stage) -> str:
        if stage.name == self.fails:
            raise PipelineError("no")
        self.ran.append(stage.name)
        stage.result.parent.mkdir(exist_ok=True)
        if stage.name != self.leaves_nothing:
            stage.result.touch()
        return f"made {stage.name}"

    def _show(self, line: str, *, known: bool, printed: str | None) -> None:
        self.shown.append((line, known, printed))


def test_each_stage_is_shown_before_it_runs_and_with_its_output_afterwards(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "new")
    seconds = chain.run()
    assert chain.ran == ["a", "b", "c"]
    assert list(seconds) == ["do a", "do b", "do c"]
    assert chain.shown[:3] == [
        ("do a", False, None),
        ("do a", False, "made a"),
        ("do b", False, None),
    ]


def test_a_stage_without_a_result_ends_the_demo(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.leaves_nothing = "b"
    with pytest.raises(PipelineError, match=r"do b has finished, but .*b is missing"):
        chain.run()


def test_finished_stages_do_not_run_again_and_keep_their_times(tmp_path: Path) -> None:
    seconds = Chain(tmp_path).run()
    again = Chain(tmp_path)
    assert again.run() == seconds
    assert again.ran == []
    assert again.shown == [(f"do {name}", True, None) for name in "abc"]


def test_a_failed_demo_resumes_at_the_failed_stage(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.fails = "b"
    with pytest.raises(PipelineError):
        chain.run()
    again = Chain(tmp_path)
    again.run()
    assert chain.ran + again.ran == ["a", "b", "c"]


def test_a_stage_with_a_missing_result_runs_again_with_all_that_follow(tmp_path: Path) -> None:
    Chain(tmp_path).run()
    (tmp_path / "b").unlink()
    again = Chain(tmp_path)
    again.run()
    assert again.ran == ["b", "c"]


def test_a_stage_with_a_changed_command_runs_again_with_all_that_follow(tmp_path: Path) -> None:
    Chain(tmp_path).run()
    again = Chain(tmp_path, ("a", "b2", "c"))
    again.run()
    assert again.ran == ["b2", "c"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"do a": "x"}', b"\xff", b"[" * 100_000, b'{"do a": NaN}', None]
)
def test_a_damaged_record_counts_as_no_record(tmp_path: Path, content: bytes | None) -> None:
    Chain(tmp_path).run()
    if content is None:
        (tmp_path / "stages.json").unlink()
        os.mkfifo(tmp_path / "stages.json")
    else:
        (tmp_path / "stages.json").write_bytes(content)
    again = Chain(tmp_path)
    again.run()
    assert again.ran == ["a", "b", "c"]


def test_the_output_of_a_command_is_written_and_its_failure_reported_in_one_line(
    tmp_path: Path,
) -> None:
    output = tmp_path / "new" / "version"
    stage = Stage(
        name="version",
        command=lambda: ["pixmix-gen", "--version"],
        result=output,
        output=output,
    )
    assert stage.line() == f"pixmix-gen --version > {output}"
    assert run_command(stage) == ""
    assert output.read_text().strip()[0].isdigit()
    wrong = Stage(name="x", command=lambda: ["pixmix-gen", "nothing"], result=output)
    with pytest.raises(PipelineError, match="pixmix-gen nothing ended with exit code 2"):
        run_command(wrong)


def test_every_command_of_the_demo_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    out = Path("demo")
    chain = stages(out)
    for name in ("plain", "pixmix"):
        checkpoints = out / "runs" / name / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "step-00000880.pt").touch()
    for folder in ("shards/digits", "shards/mixing"):
        (out / folder).mkdir(parents=True)
    assert len(chain) == 10
    assert len({stage.name for stage in chain}) == 10
    for stage in chain:
        script, *arguments = stage.command()
        assert stage.line().startswith(script)
        command = import_module(MODULES[script]).main
        with command.make_context(script, list(arguments)) as context:
            given = [*context._protected_args, *context.args]
            name, subcommand, rest = command.resolve_command(context, given)
            assert subcommand.make_context(name, rest, parent=context).params
        assert shlex.split(stage.line())[: 1 + len(arguments)] == [script, *arguments]


def test_a_run_without_checkpoints_is_reported_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    last = stages(tmp_path)[-1]
    with pytest.raises(PipelineError, match="pixmix has no checkpoint; delete it"):
        last.line()


def test_the_report_has_the_commands_as_lines_to_copy(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = {"version": 2, "networks": {"a.pt": {"clean": {"error": 0.5}}}}
    for name in ("plain", "pixmix"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        write_metrics(run, [{"epoch": 1, "step": 2, "train_loss": 1.0, "test_error": 0.5}])
        (run / "evaluation.json").write_text(json.dumps(found))
    (tmp_path / "images").mkdir()
    for name in ("mixed", "fractals", "featviz"):
        Image.new("RGB", (30, 20)).save(tmp_path / "images" / f"{name}.png")
    lines = {"pixmix-gen fractals --n 400": 12.4, "pixmix-eval --json > 'a b'": 3.0}
    text = demo.write_report(tmp_path, lines).read_text()
    commands = text.partition("<pre>")[2].partition("</pre>")[0]
    assert re.findall(r"<code>(.*)\n</code>", commands) == [
        "pixmix-gen fractals --n 400  # 12 s",
        "pixmix-eval --json &gt; &#39;a b&#39;  # 3 s",
    ]


def test_missing_extras_are_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_NEEDED", {"no_such_module": "viz", "no_such_other": "digits"})
    with pytest.raises(PipelineError, match=r"extras viz, digits are not installed"):
        check_extras()
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "demo")])
    assert result.exit_code == 1
    assert "pip install 'pixmix[demo]'" in result.stderr
    assert not (tmp_path / "demo").exists()


def test_json_output_names_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "stages", lambda _out: [])
    monkeypatch.setattr(demo, "write_report", lambda out, _seconds: out / "report.html")
    monkeypatch.setattr(demo, "document", lambda _out, report, _seconds: {"report": str(report)})
    result = CliRunner().invoke(main, ["--out", str(tmp_path), "--json"])
    assert json.loads(result.stdout) == {"report": str(tmp_path / "report.html")}
