from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import PipelineError
from pipelines.generate.plan import subtract
from pipelines.generate.records import (
    Part,
    damaged,
    find_parts,
    forget,
    from_line,
    merge,
    read_records,
    to_line,
    write_part,
)


def line(index: int) -> bytes:
    return to_line(
        {
            "index": index,
            "file": f"images/{index:08d}.png",
            "attempts": index + 1,
            "file_sha256": "0" * 64,
        }
    )


def write(folder: Path, pictures: range) -> None:
    folder.mkdir(exist_ok=True)
    write_part(folder, pictures, [line(index) for index in pictures])


@pytest.mark.parametrize(
    "ranges",
    [
        [range(10)],
        [range(7, 10), range(3), range(3, 7)],
        [range(6), range(2, 4), range(4, 10), range(9, 10)],
    ],
)
def test_merge_puts_parts_in_order_whether_or_not_they_overlap(
    tmp_path: Path, ranges: list[range]
) -> None:
    for pictures in ranges:
        write(tmp_path / "parts", pictures)
    parts = find_parts(tmp_path / "metadata.jsonl", tmp_path / "parts")
    assert {part.pictures for part in parts} == set(ranges)
    for order in (parts, parts[::-1]):
        drafts = merge(order, 10, tmp_path / "metadata.jsonl", "png")
        assert drafts == sum(range(1, 11))
        assert [record["index"] for record in read_records(tmp_path / "metadata.jsonl")] == list(
            range(10)
        )


def test_merge_takes_up_the_finished_metadata(tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.jsonl"
    write(tmp_path / "parts", range(4))
    merge(find_parts(metadata, tmp_path / "parts"), 4, metadata, "png")
    (tmp_path / "parts" / "00000000-00000004.jsonl").unlink()
    write(tmp_path / "parts", range(4, 6))
    parts = find_parts(metadata, tmp_path / "parts")
    assert [part.pictures for part in parts] == [range(4), range(4, 6)]
    merge(parts, 6, metadata, "png")
    assert metadata.read_bytes() == b"".join(map(line, range(6)))


@pytest.mark.parametrize(
    ("ranges", "end"), [([range(3), range(4, 6)], 3), ([range(1, 6)], 0), ([range(5)], 5), ([], 0)]
)
def test_merge_refuses_a_gap_and_writes_nothing(
    tmp_path: Path, ranges: list[range], end: int
) -> None:
    for pictures in ranges:
        write(tmp_path / "parts", pictures)
    parts = find_parts(tmp_path / "metadata.jsonl", tmp_path / "parts")
    with pytest.raises(PipelineError, match=f"end at picture {end} of 6"):
        merge(parts, 6, tmp_path / "metadata.jsonl", "png")
    assert not (tmp_path / "metadata.jsonl").exists()


@given(st.lists(st.integers(0, 14), max_size=8), st.integers(0, 9), st.integers(1, 6))
def test_forget_drops_these_records_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, lost: list[int], start: int, n: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    pictures = range(start, start + n)
    write(folder, pictures)
    (part,) = find_parts(folder / "metadata.jsonl", folder)
    gone = [range(index, index + 1) for index in lost]
    kept = subtract(pictures, gone)
    if kept != [pictures]:
        forget(part, gone, folder)
    parts = find_parts(folder / "metadata.jsonl", folder)
    assert [part.pictures for part in parts] == kept
    for each in parts:
        assert [record["index"] for record in read_records(each.path)] == list(each.pictures)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"7", b"\xff", line(1).rstrip()])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(line(0) + content)
    with pytest.raises(PipelineError, match=r"metadata.jsonl, line 2 (is damaged|has no end)"):
        list(read_records(path))
    with pytest.raises(PipelineError, match=r"line 2 .*the command that made the set"):
        merge([Part(path, range(2))], 2, tmp_path / "other.jsonl", "png")


ODD = [
    line(4),
    line(3).replace(b'"index":3', b'"index":4'),
    line(3).replace(b"3.png", b"4.png"),
    line(3).replace(b"3.png", b"3.jpg"),
    line(3).replace(b'"attempts":4', b'"attempts":"x"'),
    line(3).replace(b'"attempts":4', b'"attempts":0'),
    line(3).replace(b"file_sha256", b"file_sha25"),
    b"{}\n",
    b"junk\n",
    line(3).rstrip(),
    b"",
]


@pytest.mark.parametrize("odd", ODD)
def test_a_record_that_is_not_of_its_place_is_found_and_never_merged(
    tmp_path: Path, odd: bytes
) -> None:
    path = tmp_path / "00000002-00000006.jsonl"
    path.write_bytes(line(2) + odd + line(4) + line(5))
    write(tmp_path, range(2))
    whole, part = find_parts(tmp_path / "metadata.jsonl", tmp_path)
    # A line without an end takes the next one with it, and one that is lost shifts all.
    expected = {b"": [range(3, 6)], line(3).rstrip(): [range(3, 6)]}.get(odd, [range(3, 4)])
    assert damaged(part, [part.pictures], "png") == expected
    assert damaged(part, [range(2, 3)], "png") == damaged(part, [], "png") == []
    with pytest.raises(PipelineError, match=r"6.jsonl, line 2 .*the command that made the set"):
        merge([whole, part], 6, tmp_path / "metadata.jsonl", "png")
    assert not (tmp_path / "metadata.jsonl").exists()


def test_records_behind_the_end_of_a_set_are_no_part_of_it(tmp_path: Path) -> None:
    write(tmp_path / "parts", range(7))
    parts = find_parts(tmp_path / "metadata.jsonl", tmp_path / "parts")
    assert merge(parts, 6, tmp_path / "metadata.jsonl", "png") == sum(range(1, 7))
    assert (tmp_path / "metadata.jsonl").read_bytes() == b"".join(map(line, range(6)))


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.text())
def test_a_record_comes_back_exactly(number: float, count: int, text: str) -> None:
    record = {"number": number, "count": count, "nested": {"text": [text]}}
    assert to_line(record).count(b"\n") == 1
    assert from_line(to_line(record), Path("metadata.jsonl"), 1) == record


def test_a_record_holds_no_number_that_json_lacks() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_line({"slope": float("nan")})


def test_files_of_other_names_are_no_parts(tmp_path: Path) -> None:
    write(tmp_path / "parts", range(3))
    for name in ("00000000-00000003.sync-conflict.jsonl", "x.jsonl", "3-4.jsonl", "-.jsonl"):
        (tmp_path / "parts" / name).write_text("x\n")
    (part,) = find_parts(tmp_path / "metadata.jsonl", tmp_path / "parts")
    assert part.pictures == range(3)


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b'{"a":' * 100_000, b"\xff{}", b'"\\ud800"', b"NaN"]
)
def test_a_hostile_line_is_one_error(content: bytes) -> None:
    with pytest.raises(PipelineError, match="line 7"):
        from_line(content + b"\n", Path("metadata.jsonl"), 7)
