"""Generation equals what the whole model says, row by row, and compiles once."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from inference_helpers import model_config, random_params

from xlstm_jax.config import ConfigError
from xlstm_jax.data.tokenizers import ByteTokenizer
from xlstm_jax.inference.engine import MAX_STEPS, Engine
from xlstm_jax.inference.generate import Generator, generate_text
from xlstm_jax.inference.run import Run
from xlstm_jax.inference.sampling import Sampling, draws
from xlstm_jax.kernels.closeness import relative_error, tolerance
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel
from xlstm_jax.scoring.chunks import LONGEST_CHUNK, power_of_two

EOD = ByteTokenizer.eod_id
LENGTH = 500
PROMPTS = [b"def f(x):", b"", b"long " * 70, b"\xff\x00"]


def tokens_of(prompt: bytes) -> np.ndarray:
    return np.frombuffer(prompt, np.uint8).astype(np.int32)


def whole(model: xLSTMLMModel, params: object, *rows: np.ndarray) -> np.ndarray:
    """The logits of each row's [EOD] tokens in one pass, (row, LENGTH, vocab), those of padding too."""
    tokens = np.full((len(rows), LENGTH), EOD, np.int32)
    for row, ids in enumerate(rows):
        tokens[row, 1 : len(ids) + 1] = ids
    borders = np.broadcast_to(np.arange(LENGTH) == 0, tokens.shape)
    return np.asarray(jax.jit(lambda t, b: model.apply({"params": params}, t, document_borders=b))(tokens, borders))


@pytest.mark.parametrize(("layer_type", "scan_blocks"), [("mlstm", False), ("mlstm_v1", True)])
def test_prefill_of_ragged_prompts_and_steps_equal_one_pass(layer_type: str, scan_blocks: bool) -> None:
    model = xLSTMLMModel(model_config(layer_type, scan_blocks=scan_blocks))
    params = random_params(model)
    engine = Engine(model, EOD, 257)
    prompts = [tokens_of(prompt) for prompt in PROMPTS]
    carry = engine.prefill(params, prompts)
    read = np.asarray(carry.logits)
    draw = draws(Sampling(temperature=0), range(4))
    carry, made = engine.decode(params, carry, draw, np.zeros(4, bool), 12)
    truth = whole(model, params, *(np.concatenate([prompts[row], made[:, row]]) for row in range(4)))
    for row, prompt in enumerate(prompts):
        after = truth[row, len(prompt) : len(prompt) + 13]
        assert relative_error(read[row], after[0]) < tolerance(np.float32)
        picked = np.argmax(after[:, :257], axis=1)[:12]
        ends = np.flatnonzero(picked == EOD)
        upto = int(ends[0]) + 1 if len(ends) else 12
        np.testing.assert_array_equal(made[:upto, row], picked[:upto])
        assert (made[upto:, row] == EOD).all()
        if upto == 12:
            assert relative_error(carry.logits[row], after[12]) < tolerance(np.float32)


def test_a_row_is_the_same_alone_and_in_any_batch(run: Run) -> None:
    settings = Sampling(max_tokens=40, temperature=1.0, top_p=0.95, seed=7)
    together = run.generate(PROMPTS, settings)
    assert len(set(together)) == len(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert run.generate([prompt], settings, streams=[row]) == [together[row]]
    order = [2, 0, 3]
    assert run.generate([PROMPTS[row] for row in order], settings, streams=order) == [together[row] for row in order]
    assert run.generate(PROMPTS[0], settings) == together[0]


def test_rows_of_one_prompt_differ_by_their_stream_and_seeds_repeat(run: Run) -> None:
    first = run.generate(["x"] * 3, max_tokens=30, temperature=1.0)
    assert len(set(first)) == 3
    assert run.generate(["x"] * 3, max_tokens=30, temperature=1.0) == first
    assert run.generate(["x"] * 3, max_tokens=30, temperature=1.0, seed=1) != first


def test_blocks_of_any_size_make_the_same_tokens(run: Run) -> None:
    engine, draw = run.generator.engine, draws(Sampling(temperature=1.0, top_k=50), [0, 1])
    done = np.zeros(2, bool)
    made = []
    for sizes in ([20], [1] * 20, [3, 17], [7, 7, 6]):
        carry = engine.prefill(run.params, [tokens_of(b"a"), tokens_of(b"bcd")])
        parts = []
        for size in sizes:
            carry, tokens = engine.decode(run.params, carry, draw, done, size)
            parts.append(tokens)
        made.append(np.concatenate(parts))
    for other in made[1:]:
        np.testing.assert_array_equal(other, made[0])
    for steps in (0, MAX_STEPS + 1):
        with pytest.raises(ValueError, match="steps is"):
            engine.decode(run.params, carry, draw, done, steps)


def test_nothing_is_compiled_for_other_settings_lengths_or_seeds(run: Run) -> None:
    run.generate("abc", max_tokens=5)
    compiled = run.generator.engine.compiled
    for length in range(LONGEST_CHUNK // 64):
        run.generate("x" * length, max_tokens=3 + length, temperature=0.1 * length, top_k=length + 1, seed=length)
    assert run.generator.engine.compiled == compiled


class Script:
    """A stand-in for the engine that makes given tokens."""

    def __init__(self, scripts: list[bytes | list[int]]) -> None:
        self.scripts = [list(script) for script in scripts]

    def prefill(self, params: object, prompts: list, new_tokens: int) -> object:
        self.at = 0
        return type("Carry", (), {"logits": np.zeros((power_of_two(len(prompts)), 1))})

    def decode(self, params: object, carry: object, draw: object, done: np.ndarray, steps: int) -> tuple:
        made = np.full((steps, len(done)), EOD)
        for row, script in enumerate(self.scripts):
            part = script[self.at : self.at + steps]
            made[: len(part), row] = part
        self.at += steps
        return carry, made


def scripted(run: Run, scripts: list) -> Generator:
    generator = Generator(run.model, run.params, run.tokenizer)
    generator.engine = Script(scripts)  # type: ignore[assignment]
    return generator


def test_rows_end_at_eod_at_a_stop_string_or_after_max_tokens(run: Run) -> None:
    euro = "€".encode()
    generator = scripted(run, [b"ab" + euro, b"abcSTOPdef", b"abcdefghijkl", [*b"STO", EOD, *b"P"], b"1234567" + euro])
    last = {}
    texts = [""] * 5
    for delta in generator.stream([""] * 5, Sampling(max_tokens=9, stop="STOP")):
        texts[delta.row] += delta.text
        assert delta.row not in last
        if delta.finish:
            last[delta.row] = delta.finish, delta.tokens
    assert texts == ["ab€", "abc", "abcdefghi", "STO", "1234567"]
    assert last == {0: ("end", 5), 1: ("stop", 7), 2: ("length", 9), 3: ("end", 3), 4: ("length", 9)}


def test_a_stream_is_the_text_in_pieces_and_stops_hold(run: Run) -> None:
    full = run.generate("seed", max_tokens=60, temperature=1.0)
    assert "".join(run.stream("seed", max_tokens=60, temperature=1.0)) == full
    place = next(i for i in range(10, len(full)) if full.find(full[i : i + 2]) == i)
    stop = full[place : place + 2]
    assert run.generate("seed", max_tokens=60, temperature=1.0, stop=[stop, "never there"]) == full[:place]


def test_no_prompts_and_no_tokens_are_fine(run: Run) -> None:
    assert run.generate([], max_tokens=3) == []
    assert run.generate("abc", max_tokens=0) == ""
    texts = generate_text(run.model, run.params, run.tokenizer, ["abc"], max_tokens=6, temperature=0)
    assert texts == [run.generate("abc", max_tokens=6, temperature=0)]


class Words(ByteTokenizer):
    """Bytes, and id 257 for b" name", which goes on where id 32 (a space) ends."""

    vocab_size = 258

    def token_bytes(self, token_id: int) -> bytes:
        return b" name" if token_id == 257 else super().token_bytes(token_id)


def test_the_first_token_may_replace_the_prompts_last_one(run: Run) -> None:
    generator = Generator(run.model, run.params, Words())
    settings = Sampling(max_tokens=1, temperature=5.0)
    healed = generator.generate(["def "] * 40, settings)
    assert set(healed) == {"", "name"}
    assert len(set(generator.generate(["def"] * 40, settings))) > 10
    assert len(set(generator.generate(["def "] * 40, Sampling(max_tokens=1, temperature=5.0, heal=False)))) > 10
    # The others in the batch choose freely, and as they would alone.
    mixed = Sampling(max_tokens=8, temperature=1.0)
    assert generator.generate(["def ", "x"], mixed)[1] == generator.generate(["x"], mixed, streams=[1])[0]
    carry = generator.engine.prefill(run.params, [tokens_of(b"def")])
    logits = np.asarray(carry.logits)[0]
    likelier = "name" if logits[257] > logits[32] else ""
    assert generator.generate(["def "], Sampling(max_tokens=1, temperature=0)) == [likelier]


def test_streams_and_settings_that_do_not_fit_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="streams is"):
        run.generate(["a", "b"], streams=[1])
    with pytest.raises(ConfigError, match="seed cannot be given beside"):
        run.generate("a", Sampling(), seed=3)
    for prompt in (3, None, [3], ["a", None]):
        with pytest.raises(ConfigError, match=r"prompt is (3|None), but must be a text"):
            run.generate(prompt)  # type: ignore[call-overload]
    for text_only in (run.stream, run.score):
        with pytest.raises(ConfigError, match="prompt is 3, but must be a text"):
            text_only(3)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="no setting 'warmth' of generation"):
        run.generate("a", warmth=3)


def test_a_score_is_the_loss_of_the_text_as_a_document(run: Run) -> None:
    text = "def f():\n    return 'ü'\n" * 15
    data = text.encode()
    assert LONGEST_CHUNK < len(data) < LENGTH
    targets = np.concatenate([tokens_of(data), [EOD]])
    logits = whole(run.model, run.params, tokens_of(data))[0, : len(targets)].astype(np.float64)
    nats = (np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(targets)), targets]).sum()
    score = run.score(text)
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert (score.tokens, score.raw_bytes) == (len(data) + 1, len(data))
    assert score.bits_per_byte == pytest.approx(nats / np.log(2) / len(data), rel=1e-5)
    assert run.score("").bits_per_byte == np.inf
