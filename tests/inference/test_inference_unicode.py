"""Characters of several tokens: a stream is what is generated at once, and a prompt may be any bytes."""

from __future__ import annotations

import pytest

from xlstm_jax.inference.run import Run

PROMPT = "é日本😀"


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_stream_of_bytes_joins_to_the_text(run: Run, temperature: float) -> None:
    settings = {"max_tokens": 40, "temperature": temperature, "heal": False}
    whole = run.generate(PROMPT, **settings)
    assert whole
    assert "".join(run.stream(PROMPT, **settings)) == whole


def test_a_prompt_may_be_half_a_character(run: Run) -> None:
    for prompt in ("\ud83d", PROMPT.encode()[:-2], b"\xff"):
        assert isinstance(run.generate(prompt, max_tokens=3), str)
