"""A format is one file: found by lying beside the others, and known to all that ask for formats."""

import pytest

from xlstm_jax.cli import main
from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import SourceError
from xlstm_jax.data.prepare import PrepareConfig, formats, prepare

UPPER = '''
"""Paragraphs, in capitals."""

from xlstm_jax.data.errors import SourceError
from xlstm_jax.data.prepare.formats.base import Format


def _read(stream, config, start, end, where):
    position = 0
    for paragraph in stream.read().split(b"\\\\n\\\\n"):
        if b"!" in paragraph:
            raise SourceError(f"{where(position)} shouts")
        yield paragraph.upper()
        position += len(paragraph) + 2


FORMAT = Format(name="upper", summary="paragraphs, in capitals", read=_read, endings=(".up", ".zip"))
'''.replace("\\\\", "\\")


@pytest.fixture
def upper(tmp_path, monkeypatch):
    """The file of a new format, where formats are looked for."""
    folder = tmp_path / "formats"
    folder.mkdir()
    (folder / "upper.py").write_text(UPPER)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    formats.formats.cache_clear()
    yield
    formats.formats.cache_clear()


def test_a_new_file_is_a_new_format_everywhere(upper, tmp_path, capsys):
    (tmp_path / "a.up").write_text("one\n\ntwo")
    # An ending that was refused before somebody could read it.
    (tmp_path / "b.zip").write_text("three")
    (tmp_path / "c.txt").write_text("four")
    store = prepare(f"{tmp_path}/*.*", tmp_path / "out", validation_fraction=0, progress=False, workers=1)
    train = store.split("train")
    assert sorted(train.document_bytes(i) for i in range(4)) == [b"ONE", b"THREE", b"TWO", b"four"]
    assert PrepareConfig(format="upper").format == "upper"
    with pytest.raises(SystemExit):
        main(["data", "prepare", "--help"])
    shown = capsys.readouterr().out
    assert "{auto,json,jsonl,text,upper}" in shown
    assert "upper    paragraphs, in capitals (.up, .zip)" in shown
    (tmp_path / "a.up").write_text("one\n\ntwo!")
    with pytest.raises(SourceError, match=r"a\.up, line 3 shouts"):
        prepare(tmp_path / "a.up", tmp_path / "other", progress=False, workers=1)


def test_a_format_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"format is 'uper', but must be one of 'auto', 'json', 'jsonl', 'text'"):
        PrepareConfig(format="uper")
