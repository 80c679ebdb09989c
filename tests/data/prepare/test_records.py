"""Records of JSON in every form that datasets ship; those without a text are refused by line, or counted."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.cli import main
from xlstm_jax.data.errors import SourceError
from xlstm_jax.data.prepare import PrepareConfig, prepare
from xlstm_jax.data.prepare.formats import json as json_format
from xlstm_jax.data.prepare.notes import Notes
from xlstm_jax.data.prepare.sources import documents, list_files

RECORDS = [
    {"id": 1, "text": "one"},
    {"text": "zwei ü 日本", "more": {"a": [1, {"b": "]"}]}},
    {"text": ""},
    {"text": "\ud800"},
]
TEXTS = [b"one", "zwei ü 日本".encode(), b"\xed\xa0\x80"]
FORMS = {
    "an array": json.dumps(RECORDS),
    "an array over lines": json.dumps(RECORDS, indent=2),
    "an array, an object a line": "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n",
    "lines": "".join(json.dumps(record) + "\n" for record in RECORDS),
    "objects over lines": "\n".join(json.dumps(record, indent=1) for record in RECORDS),
    "objects without a border": "".join(json.dumps(record, indent=1) for record in RECORDS),
}


def read(*sources, **fields):
    config, notes = PrepareConfig(**fields), Notes()
    return [d for f in list_files(sources, config) for d in documents(f, config, notes=notes)], notes.sentences()


@pytest.mark.parametrize("form", FORMS)
def test_records_in_a_json_file_are_documents_however_they_are_written(form, tmp_path):
    for bom in (b"", b"\xef\xbb\xbf"):
        content = bom + FORMS[form].encode()
        (tmp_path / "a.json").write_bytes(content)
        (tmp_path / "b.json.gz").write_bytes(gzip.compress(content))
        (tmp_path / "c.txt").write_bytes(content)
        assert read(tmp_path / "a.json")[0] == TEXTS
        assert read(tmp_path / "b.json.gz")[0] == TEXTS
        assert read(tmp_path / "c.txt", format="json")[0] == TEXTS


def test_a_record_alone_is_one_and_settings_are_text(tmp_path):
    (tmp_path / "one.json").write_text('{"text": "x"}')
    (tmp_path / "settings.json").write_text('{\n "name": "x",\n "text_field": 3\n}\n')
    (tmp_path / "empty.json").write_text("[]")
    assert read(tmp_path)[0] == [b"x", b'{\n "name": "x",\n "text_field": 3\n}\n']
    assert read(tmp_path / "settings.json", text_field="name")[0] == [b"x"]


@given(st.lists(st.text(max_size=30), max_size=30), st.integers(1, 50), st.sampled_from([None, 1]))
def test_an_array_is_read_in_blocks_of_any_size(tmp_path_factory, texts, block, indent):
    path = tmp_path_factory.mktemp("blocks") / "a.json"
    path.write_text(
        json.dumps([{"text": t} for t in texts], ensure_ascii=False, indent=indent), "utf-8", "surrogatepass"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_format, "BLOCK", block)
        assert read(path)[0] == [t.encode("utf-8", "surrogatepass") for t in texts if t]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            '[\n{"instruction": "hi", "output": "x"}]',
            r"line 2, record 1 has no field 'text'; its fields are 'instruction', 'o",
        ),
        ('[{"text": "a"},\n\n{"text": 3}]', r"line 3, record 2: field 'text' is int '3', but must be a string"),
        ("[1, 2]", r"line 1, record 1 holds an int, but must hold an object with a field 'text'"),
        ('["a", "b"]', "record 1 holds a str, but must hold an object"),
        ('[[{"text": "a"}]]', "record 1 holds a list"),
        ('[{"text": "a"},\n{"text": "b"}\n', r"line 3, record 2 is not JSON: its end stands where a ',' should"),
        ('[{"text": "a"}\n{"text": "b"}]', r"line 2, record 1 is not JSON: a '\{' stands where a ',' should"),
        ('[{"text": "a"}] x', "is not JSON: a 'x' stands where the end of the file should"),
        ('[\n{"text": "a"},\n{"text" "b"}]', r"line 3, record 2 is not JSON: Expecting ':' delimiter"),
        ("[" * 100_000, "record 1 is not JSON: maximum recursion depth"),
        ("[", "record 1 is not JSON"),
    ],
)
def test_what_is_wrong_in_an_array_is_named_by_line_and_record(content, says, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SourceError, match=rf"a\.json, .*{says}"):
        read(tmp_path / "a.json")


def test_a_lines_file_that_is_an_array_says_how_it_is_read(tmp_path):
    for content in (FORMS["an array"], FORMS["an array over lines"]):
        (tmp_path / "a.jsonl").write_text(content)
        with pytest.raises(SourceError, match=r"a\.jsonl, line 1 .*one JSON array is read with --format json"):
            read(tmp_path / "a.jsonl", skip_invalid=True)
        assert read(tmp_path / "a.jsonl", format="json")[0] == TEXTS


BAD = ['{"text": null}', '{"text": 3}', '{"body": "x"}', "{}", "[1]", "3", '{"text": ["x"]}']


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_records_without_a_text_are_left_out_and_counted_when_asked(name, tmp_path):
    records = ['{"text": "first"}', *BAD, '{"text": "last"}']
    path = tmp_path / name
    path.write_text("\n".join(records) if name == "a.jsonl" else f"[{','.join(records)}]")
    with pytest.raises(SourceError, match=r"field 'text' is null, but must be a string.*--skip-invalid"):
        read(path)
    found, (said,) = read(path, skip_invalid=True)
    assert found == [b"first", b"last"]
    assert said.startswith(f"{len(BAD)} records have no text: left out (the first {path}, line ")


def test_a_line_that_is_no_json_is_left_out_too_and_processes_count_alike(tmp_path, capsys):
    lines = ['{"text": "one"}', '{"text": "tw', '{"text": null}', '{"text": "three"}'] * 50
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    prints = []
    for workers in ("1", "2"):
        out = str(tmp_path / f"s{workers}")
        words = ["data", "prepare", str(tmp_path / "a.jsonl"), "--out", out, "--workers", workers, "--quiet"]
        assert main(words) == 1
        assert "--skip-invalid" in capsys.readouterr().err
        assert main([*words[:4], out, *words[5:], "--skip-invalid"]) == 0
        assert "note: 100 records have no text: left out (the first" in capsys.readouterr().err
    said: list[str] = []
    settings = {"skip_invalid": True, "task_bytes": 100, "progress": False}
    prints = [prepare(tmp_path / "a.jsonl", tmp_path / f"t{n}", workers=n, say=said.append, **settings) for n in (1, 2)]
    assert prints[0].fingerprint == prints[1].fingerprint
    assert said[: len(said) // 2] == said[len(said) // 2 :]
    assert "100 records" in said[0]


def test_bytes_after_a_gzip_are_counted(tmp_path):
    packed = gzip.compress(b'{"text": "one"}\n') + gzip.compress(b'{"text": "two"}\n')
    path = tmp_path / "a.jsonl.gz"
    for after, count in ((b"xx", 2), (b"\0\0\r\n", 2), (b"\0" * 600 + b"y" * 70_000, 70_000)):
        path.write_bytes(packed + after)
        with pytest.raises(SourceError, match=f"has {count} bytes after the end of its gzip stream that are not gzip"):
            read(path)
    path.write_bytes(packed + b"\0" * 512)
    assert read(path)[0] == [b"one", b"two"]
