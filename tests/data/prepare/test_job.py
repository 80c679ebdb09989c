"""The record of a half-made store: read by the version that wrote it, and by no other."""

import json

import pytest

from xlstm_jax.data.errors import PrepareError
from xlstm_jax.data.prepare import PrepareConfig, prepare
from xlstm_jax.data.prepare.job import JOB_FILE, Job, Stretch, make_job
from xlstm_jax.data.prepare.sources import list_files


@pytest.fixture
def half_made(tmp_path):
    """A store whose preparation met a line that is not JSON."""
    (tmp_path / "x.jsonl").write_text('{"text": "one"}\n' * 9 + "nonsense\n")
    with pytest.raises(ValueError, match="line 10 is not JSON"):
        prepare(tmp_path / "x.jsonl", tmp_path / "out", progress=False, workers=1)
    return tmp_path


def test_a_half_made_store_of_another_version_is_refused(half_made):
    file = half_made / "out" / "work" / JOB_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 1}))
    with pytest.raises(PrepareError, match=r"plan\.json is of version 1, but .* version 2 only; delete .*out"):
        prepare(half_made / "x.jsonl", half_made / "out", progress=False, workers=1)


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 2}', '{"settings": {}}'])
def test_a_record_that_is_no_record_is_refused(half_made, content):
    (half_made / "out" / "work" / JOB_FILE).write_text(content)
    with pytest.raises(PrepareError, match="is not a plan that this version wrote; delete"):
        prepare(half_made / "x.jsonl", half_made / "out", progress=False, workers=1)


def test_a_value_that_no_config_has_is_refused(half_made):
    file = half_made / "out" / "work" / JOB_FILE
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"settings": data["settings"] | {"shard_tokens": 0}}))
    with pytest.raises(PrepareError, match="is not a plan that this version wrote"):
        Job.read(file.parent)


def test_a_record_of_version_2_keeps_its_form(tmp_path):
    """What the programs of before have written, word for word."""
    (tmp_path / "x.jsonl").write_text('{"text": "one"}\n' * 4)
    config = PrepareConfig(separator="--", include=["*.jsonl"])
    made = make_job(list_files([tmp_path / "x.jsonl"], config), config, "bytes", task_bytes=40)
    made.write(tmp_path)
    (file,) = json.loads((tmp_path / JOB_FILE).read_text())["files"]
    assert json.loads((tmp_path / JOB_FILE).read_text()) == {
        "version": 2,
        "settings": {
            "tokenizer": "bytes",
            "vocab_size": None,
            "training_bytes": 1 << 30,
            "validation_fraction": 0.02,
            "seed": 0,
            "shard_tokens": 1 << 26,
        },
        "reading": {
            "format": "auto",
            "text_field": "text",
            "skip_invalid": False,
            "separator": "--",
            "include": ["*.jsonl"],
        },
        "files": [file],
        "tasks": [[{"file": 0, "start": 0, "end": 40}], [{"file": 0, "start": 40, "end": 64}]],
    }
    assert set(file) == {"path", "format", "gzip", "size", "mtime_ns", "named", "held_out"}
    assert Job.read(tmp_path) == made
    assert made.tasks[1] == [Stretch(0, 40, 64)]
