"""JSON lines: each record back as it was, with its label, in order."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit.labelling.judging import Judge
from guardkit.labelling.lines import JsonLines
from guardkit.labelling.rows import Reading
from guardkit.testing import FakeGuard
from tests.labelling.conftest import Label, read_jsonl, write_jsonl

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text().filter(lambda key: key != "guardkit"), values, max_size=5)


def labelled(lines: list[bytes]) -> list[bytes]:
    unit = JsonLines(0, lines, "guardkit")
    rows = unit.rows(Reading(), range(len(lines)))
    found = Judge([FakeGuard({"bad": "unsafe"})]).encoded(rows)
    return unit.json_lines([(row.form, data) for row, (_, data) in zip(rows, found, strict=True)], "guardkit")


@settings(max_examples=60, deadline=None)
@given(st.lists(objects, max_size=5), st.booleans(), st.sampled_from(["", " ", "\t"]))
def test_any_object_comes_back_as_it_was_with_its_label_behind(records: list[Any], ascii_: bool, blank: str) -> None:
    lines = [json.dumps(r, ensure_ascii=ascii_).encode("utf-8", "surrogatepass") + blank.encode() for r in records]
    lines = [line for line in lines if b"\xed" not in line or line.isascii()]
    for line, out in zip(lines, labelled(lines), strict=True):
        before, after = json.loads(line), json.loads(out)
        label = after.pop("guardkit")
        assert after == before
        assert list(after) == list(before)
        assert out.startswith(line.rstrip()[:-1])  # to the byte: numbers, spacing, escapes
        assert label["severity"] in ("safe", "controversial", "unsafe") or label["error"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b and b.strip() and b"\0" not in b), max_size=6))
def test_any_bytes_give_a_line_each(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("bytes") / "in.jsonl"
    path.write_bytes(b"\n".join([b"{}", *lines]))
    from guardkit.labelling.lines import json_units

    units = list(json_units(path, "guardkit"))
    read = [line for unit in units for line in unit.lines]
    assert len(read) <= len(lines) + 1
    for out in labelled(read):
        assert json.loads(out)["guardkit"]["action"]


def test_what_stands_in_a_record_and_what_is_no_record(label: Label, tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "fine", "n": 1.50, "big": 12345678901234567890}',
        b'  {"text":"BAD"}  ',
        b"{}",
        b"",
        b"not json",
        b'"a string"',
        b'["a list"]',
        b'{"text":"x","text":"BAD"}',
        b'{"text": "caf\xe9"}',
        b'{"text": "mine", "guardkit": {"severity": "safe"}}',
        b'{"text": "cut off',
    ]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\r\n".join(lines))
    done = label(source, "--out", tmp_path / "out.jsonl")
    assert done.code == 3
    out = (tmp_path / "out.jsonl").read_bytes().splitlines()
    found = [json.loads(line) for line in out]
    assert len(found) == len(lines) - 1  # the blank line holds no record
    assert out[0].startswith(b'{"text": "fine", "n": 1.50, "big": 12345678901234567890, "guardkit": {')
    assert [f["guardkit"]["severity"] for f in found] == [
        "safe", "unsafe", None, None, "safe", "safe", None, "safe", None, None
    ]  # fmt: skip
    assert found[3]["value"] == "not json"
    assert found[4]["value"] == "a string"
    assert found[5]["value"] == ["a list"]
    assert "given twice" in found[6]["guardkit"]["error"]
    assert found[7]["text"] == "café"
    assert found[8]["value"]["guardkit"] == {"severity": "safe"}
    assert "--column" in found[8]["guardkit"]["error"]
    assert found[9]["value"] == '{"text": "cut off'


def test_the_contract_of_a_label(label: Label, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "BAD"}, {"text": "BOOM"}])
    assert label(source, "--out", tmp_path / "out.jsonl").code == 3
    good, failed = (r["guardkit"] for r in read_jsonl(tmp_path / "out.jsonl"))
    assert {"severity", "categories", "scores", "refusal", "action", "model", "policy"} <= set(good)
    assert "error" not in good
    assert (good["severity"], good["categories"], good["action"]) == ("unsafe", ["violent"], "block")
    assert (failed["severity"], failed["action"]) == (None, "block")
    assert "boom" in failed["error"]


def test_a_blocked_record_is_no_failure(label: Label, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "BAD"}])
    assert label(source, "--out", tmp_path / "out.jsonl").code == 0


def test_equal_texts_are_judged_once(label: Label, tmp_path: Path, records: list[dict[str, Any]]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "the same"} for _ in records])
    label(source, "--out", tmp_path / "out.jsonl")
    assert label.calls == 1


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_inputs_give_outputs_of_the_same_kind(
    label: Label, tmp_path: Path, records: list[dict[str, Any]], ending: str
) -> None:
    import bz2
    import lzma

    import zstandard

    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[ending]
    unpack = {
        ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress,
        ".zst": lambda data: zstandard.ZstdDecompressor().stream_reader(data).read(),
    }[ending]  # fmt: skip
    text = write_jsonl(tmp_path / "plain.jsonl", records[:1200]).read_bytes()
    half = len(text) // 2
    (tmp_path / f"in.jsonl{ending}").write_bytes(pack(text[:half]) + pack(text[half:]))  # two members
    assert label(tmp_path / "plain.jsonl", "--out", tmp_path / "plain_out.jsonl").code == 0
    if ending == ".zst":
        unpack = lambda data: zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()  # noqa: E731
    assert label(tmp_path / f"in.jsonl{ending}", "--out", tmp_path / "out").code == 0
    packed = (tmp_path / "out" / f"in.jsonl{ending}").read_bytes()
    assert unpack(packed) == (tmp_path / "plain_out.jsonl").read_bytes()


@pytest.mark.parametrize("ending", [".gz", ".zst", ".xz"])
def test_damaged_compression_is_an_error_and_other_inputs_go_on(label: Label, tmp_path: Path, ending: str) -> None:
    import lzma

    import zstandard

    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[ending]
    packed = pack(b"".join(b'{"text": "row %d"}\n' % (i * i) for i in range(5000)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"a.jsonl{ending}").write_bytes(packed[: len(packed) // 2])
    write_jsonl(tmp_path / "in" / "b.jsonl", [{"text": "fine"}])
    done = label(tmp_path / "in", "--out", tmp_path / "out")
    assert done.code == 3
    assert "damaged" in done.err
    assert f"a.jsonl{ending}" in done.err
    assert [p.name for p in (tmp_path / "out").glob("*") if p.is_file()] == ["b.jsonl"]


def test_members_are_read_to_the_last_one(label: Label, tmp_path: Path) -> None:
    """With what may stand between them: padding, frames that are skipped. What is no such data is told."""
    import bz2
    import lzma

    import zstandard

    one, two = b'{"text": "fine"}\n', b'{"text": "BAD"}\n'
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    packed = {
        "a.jsonl.xz": lzma.compress(one) + bytes(8) + lzma.compress(two) + bytes(4),
        "b.jsonl.bz2": bz2.compress(one) + bz2.compress(two),
        "c.jsonl.zst": skipped + zstandard.compress(one) + skipped + zstandard.compress(two),
        "d.jsonl.gz": gzip.compress(one) + gzip.compress(two) + bytes(512),
    }
    (tmp_path / "in").mkdir()
    for name, data in packed.items():
        (tmp_path / "in" / name).write_bytes(data)
    assert label(tmp_path / "in", "--out", tmp_path / "out", "--format", "parquet").code == 0
    import pyarrow.parquet as pq

    for name in "abcd":
        found = pq.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()
        assert [row["guardkit"]["severity"] for row in found] == ["safe", "unsafe"]
    for name, data in (
        ("e.jsonl.xz", lzma.compress(one) + b"\xfd7zXX" + lzma.compress(two)),
        ("f.jsonl.bz2", bz2.compress(one) + b"BZZ" + bz2.compress(two)),
    ):
        (tmp_path / name).write_bytes(data)
        done = label(tmp_path / name, "--out", tmp_path / "out2")
        assert (done.code, "damaged" in done.err) == (3, True)


def test_an_integer_of_any_length_is_one(label: Label, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "BAD", "n": %s}\n' % ("1" * 5000))
    assert label(source, "--out", tmp_path / "out.jsonl").code == 0
    line = (tmp_path / "out.jsonl").read_text()
    assert line.startswith(source.read_text()[:-2])
    assert '"severity": "unsafe"' in line
    assert label(source, "--out", tmp_path / "out.parquet").code == 0
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "out.parquet")["n"].to_pylist() == ['"' + "1" * 5000 + '"']


def test_prompt_answer_or_both(label: Label, tmp_path: Path) -> None:
    records = [{"prompt": "BAD", "response": "no"}, {"prompt": "hi", "response": "HMM yes"}, {"prompt": "HMM"}]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    found = {}
    for which in ("last", "prompt", "both"):
        assert label(source, "--out", tmp_path / f"{which}.jsonl", "--judge", which).code == 0
        found[which] = [r["guardkit"] for r in read_jsonl(tmp_path / f"{which}.jsonl")]
    severities = {which: [f["severity"] for f in labels] for which, labels in found.items()}
    assert severities == {
        "last": ["safe", "controversial", "controversial"],
        "prompt": ["unsafe", "safe", "controversial"],
        "both": ["unsafe", "controversial", "controversial"],
    }
    assert [p["stage"] for p in found["both"][0]["parts"]] == ["prompt", "response"]
    assert [p["severity"] for p in found["both"][0]["parts"]] == ["unsafe", "safe"]


def test_links_in_folders_are_followed_once_and_a_link_to_nothing_is_told(label: Label, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "elsewhere" / "b.jsonl", [{"text": "BAD"}])
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": "fine"}])
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert label(tmp_path / "in", "--out", tmp_path / "out").code == 0
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [".guardkit", "a.jsonl", "linked"]
    assert [p.name for p in (tmp_path / "out" / "linked").iterdir()] == ["b.jsonl"]
    (tmp_path / "in" / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    done = label(tmp_path / "in", "--out", tmp_path / "out")
    assert done.code == 3
    assert "gone.jsonl: No such file" in done.err


def test_pipes_and_devices_in_a_folder_are_not_waited_for(label: Label, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": "a"}])
    os.mkfifo(tmp_path / "in" / "pipe.jsonl")
    (tmp_path / "in" / "endless.jsonl").symlink_to("/dev/zero")
    done = label(tmp_path / "in", "--out", tmp_path / "out")
    assert (done.code, "2 other files" in done.err) == (0, True)


def test_a_name_may_be_as_long_as_a_name_may_be(label: Label, tmp_path: Path) -> None:
    name = "a" * 249 + ".jsonl"
    write_jsonl(tmp_path / "in" / name, [{"text": "a"}])
    assert label(tmp_path / "in", "--out", tmp_path / "out").code == 0
    assert read_jsonl(tmp_path / "out" / name)[0]["guardkit"]["severity"] == "safe"


def test_an_output_inside_the_input_is_no_input(label: Label, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"text": "fine"}])
    out, side = tmp_path / "data" / "sub" / "labelled", tmp_path / "data" / "dropped"
    for given_ in (tmp_path / "data", tmp_path / "data" / "**" / "*.jsonl"):
        for _ in range(2):
            done = label(given_, "--out", out, "--where", "safe", "--dropped", side)
            assert done.code == 0
            assert "1 row: 1 safe" in done.err or "1 row, 1 of them before: 1 safe" in done.err
    assert label.calls == 0
    assert [p.name for p in sorted(out.iterdir())] == [".guardkit", "a.jsonl"]
    assert label(tmp_path / "data", "--out", tmp_path / "data").code == 2  # it would be written over


def test_a_stream_is_no_input(label: Label, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for stream in (tmp_path / "pipe", "/dev/null", "-"):
        done = label(stream, "--out", tmp_path / "out")
        assert done.code == 2
        assert "write a stream to a file first" in done.err


RUSSIAN = "нехорошие слова, и их много"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", f"fine\n{RUSSIAN}\n"),
        ("a.jsonl", f'{{"text": "fine"}}\n{{"text": "{RUSSIAN}"}}\n'),
        ("a.json", f'[{{"text": "fine"}},\n{{"text": "{RUSSIAN}"}}]'),
        ("a.csv", f"id,text\n1,fine\n2,{RUSSIAN}\n"),
    ],
)
def test_rows_of_an_encoding_that_is_not_known_are_kept_and_not_judged(
    name: str, data: str, label: Label, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data.encode("cp1251"))
    assert label(tmp_path / name, "--out", tmp_path / "out.jsonl").code == 3
    first, second = read_jsonl(tmp_path / "out.jsonl")
    assert first["guardkit"]["severity"] == "safe"
    assert "not UTF-8" in second["guardkit"]["error"]
    assert "íåõîðîøèå" in json.dumps(second, ensure_ascii=False)
