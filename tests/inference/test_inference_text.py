"""What is shown of a row: whole characters, and nothing of a stop string, however its bytes come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.inference.text import TextStream


def shown(parts: list[bytes], stop: tuple[str, ...] = (), cut_off: bool = False) -> tuple[str, bool]:
    stream = TextStream(stop)
    text = "".join(stream.feed(part) for part in parts)
    return text + stream.close(cut_off=cut_off), stream.stopped


def cuts(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.binary(max_size=40), st.lists(st.integers(0, 100), max_size=8))
def test_bytes_in_any_parts_come_out_as_decoded_at_once(data: bytes, places: list[int]) -> None:
    text, stopped = shown(cuts(data, places))
    assert text == data.decode("utf-8", "replace")
    assert not stopped
    text.encode()


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 100), max_size=8),
)
def test_the_stop_that_is_complete_first_ends_the_text_wherever_it_is_cut(
    text: str, stops: list[str], places: list[int]
) -> None:
    expected, stopped = text, False
    for end in range(len(text) + 1):
        complete = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            expected, stopped = text[: min(complete)], True
            break
    assert shown(cuts(text.encode(), places), tuple(stops)) == (expected, stopped)


def test_nothing_of_a_stop_string_is_shown_before_it_is_clear() -> None:
    stream = TextStream(["\n\nclass"])
    assert stream.feed(b"x\n") == "x"
    assert stream.feed(b"\ncla") == ""
    assert stream.feed(b"p") == "\n\nclap"
    assert stream.feed(b"\n\nclas") == ""
    assert stream.feed(b"s more") == ""
    assert stream.stopped
    assert stream.feed(b"and more") == ""
    assert stream.close() == ""


def test_a_character_is_shown_when_it_is_whole() -> None:
    stream = TextStream()
    assert [stream.feed(bytes([byte])) for byte in "€".encode()] == ["", "", "€"]


@pytest.mark.parametrize(("cut_off", "end"), [(True, ""), (False, "\ufffd")])
def test_half_a_character_at_the_end_is_an_error_only_if_the_row_was_over(cut_off: bool, end: str) -> None:
    assert shown(["a€".encode()[:-1]], cut_off=cut_off)[0] == "a" + end
