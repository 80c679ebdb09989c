"""The optimizer does what its config says: rates, decay and its mask, clipping."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import Recorder, tiny_experiment

from xlstm_jax.config import ConfigError, dumps
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.events import Stepped
from xlstm_jax.training.loop import train
from xlstm_jax.training.optimizers import Optimizer, OptimizerConfig, ScheduledConfig, learning_rate
from xlstm_jax.training.optimizers.adamw import decay_mask

EPS = float(np.finfo(np.float32).eps)
"""A rounding of float32."""

PARAMS = {
    "token_embedding": {"embedding": jnp.ones((4, 3))},
    "blocks_0": {
        "ffn": {"proj_down": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}},
        "norm": {"scale": jnp.ones(3)},
    },
}


@settings(deadline=None, max_examples=60)
@given(
    schedule=st.sampled_from(["cosine", "linear", "exponential", "constant"]),
    warmup=st.integers(0, 20),
    steps=st.integers(1, 60),
    floor=st.floats(0, 1),
)
def test_rate_starts_above_zero_never_passes_the_peak_and_keeps_its_floor(
    schedule: str, warmup: int, steps: int, floor: float
) -> None:
    floor = max(floor, 1e-3) if schedule == "exponential" else floor
    config = OptimizerConfig(lr=0.5, schedule=schedule, warmup_steps=warmup, end_lr_factor=floor)  # type: ignore[arg-type]
    rates = np.asarray(learning_rate(config, steps)(jnp.arange(max(steps, warmup) + 30)))
    assert rates[0] > 0 or (warmup == 0 and steps == 1)
    assert (rates <= 0.5).all()
    if warmup:
        assert rates[warmup - 1] == pytest.approx(0.5)
        assert (np.diff(rates[:warmup]) > 0).all()
    assert (np.diff(rates[warmup:]) <= 1e-7).all()
    if schedule != "constant":
        # A power of `floor` is off by some roundings, the cosine's 1 + cos(pi) by one of 1.
        np.testing.assert_allclose(rates[max(steps, warmup + 2) :], 0.5 * floor, rtol=8 * EPS, atol=0.5 * EPS)
        assert (rates[warmup:] >= 0.5 * floor - 1e-7).all()
    else:
        np.testing.assert_array_equal(rates[warmup:], 0.5)


def test_exponential_decay_falls_by_equal_factors_and_the_cooldown_by_equal_parts() -> None:
    config = OptimizerConfig(lr=0.5, schedule="exponential", warmup_steps=3, end_lr_factor=0.1, cooldown_steps=4)
    rates = np.asarray(learning_rate(config, 20)(jnp.arange(25)))
    decay, cooldown = rates[3:16], rates[16:20]
    assert (decay[0], decay[-1]) == (pytest.approx(0.5), pytest.approx(0.05))
    np.testing.assert_allclose(decay[1:] / decay[:-1], 0.1 ** (1 / 12), rtol=8 * EPS)
    np.testing.assert_allclose(cooldown, 0.05 * np.array([4, 3, 2, 1]) / 5, rtol=8 * EPS)
    assert not rates[20:].any()


def test_published_mask_decays_kernels_alone() -> None:
    names = {
        jax.tree_util.keystr(path, simple=True, separator="."): on
        for path, on in jax.tree_util.tree_leaves_with_path(decay_mask(PARAMS, OptimizerConfig()))
    }
    assert {name for name, on in names.items() if on} == {"blocks_0.ffn.proj_down.kernel"}
    assert decay_mask(PARAMS, OptimizerConfig(), True)["token_embedding"]["embedding"] is True
    assert all(jax.tree.leaves(decay_mask(PARAMS, OptimizerConfig(decay_mask="all"))))


def test_decay_shrinks_by_rate_times_decay_and_only_under_the_mask() -> None:
    config = OptimizerConfig(lr=0.1, schedule="constant", warmup_steps=0, weight_decay=0.5)
    optimizer = config.build(10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["blocks_0"]["ffn"]["proj_down"]["kernel"], -0.05, rtol=4 * EPS)
    assert not updates["blocks_0"]["ffn"]["proj_down"]["bias"].any()
    assert not updates["token_embedding"]["embedding"].any()


def test_two_steps_equal_adamw_written_out() -> None:
    config = OptimizerConfig(lr=0.1, schedule="linear", warmup_steps=0, weight_decay=0.3, grad_clip_norm=0.5, eps=1e-8)
    optimizer = config.build(3)
    params = {"lm_head": {"kernel": jnp.asarray([[1.0, -2.0]])}}
    state, (first, second), w = optimizer.init(params), config.betas, np.array([1.0, -2.0])
    m = v = np.zeros(2)
    for t, grad in enumerate(([3.0, 4.0], [0.1, -0.2]), start=1):
        updates, state = optimizer.update({"lm_head": {"kernel": jnp.asarray([grad])}}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = np.asarray(grad) * min(1, 0.5 / np.linalg.norm(grad))
        m, v = first * m + (1 - first) * g, second * v + (1 - second) * g**2
        rate = 0.1 * (0.1 + 0.9 * (1 - (t - 1) / 2))
        w = w - rate * (m / (1 - first**t) / (np.sqrt(v / (1 - second**t)) + 1e-8) + 0.3 * w)
        np.testing.assert_allclose(params["lm_head"]["kernel"][0], w, rtol=8 * EPS)


@dataclass
class LionConfig(ScheduledConfig):
    """What a file of another optimizer holds."""

    name: Literal["lion"] = "lion"
    weight_decay: float = 0.1

    def build(self, total_steps: int, *, decay_embedding: bool = False) -> Optimizer:
        rate = learning_rate(self, total_steps)
        lion = optax.lion(rate, weight_decay=self.weight_decay, mask=lambda p: decay_mask(p, OptimizerConfig()))
        return Optimizer(lion.init, lion.update, rate)


@dataclass
class OtherExperiment(Experiment):
    """With the union that the other optimizer's name would join."""

    optimizer: OptimizerConfig | LionConfig = field(default_factory=LionConfig)  # type: ignore[assignment]


def test_another_optimizer_is_one_class_that_its_name_tells_from_the_others(store: Path, tmp_path: Path) -> None:
    plain = tiny_experiment(store=store, steps=4, eval_every=0)
    lion = LionConfig(lr=1e-3, warmup_steps=1)
    experiment = OtherExperiment(plain.model, plain.data, lion, plain.training)
    assert OtherExperiment.from_dict(json.loads(dumps(experiment))) == experiment
    recorder = Recorder()
    outcome = train(tmp_path / "run", experiment, [recorder])
    records = [event.record for event in recorder.events if isinstance(event, Stepped)]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert records[0]["lr"] == pytest.approx(1e-3)
    assert records[-1]["loss"] < records[0]["loss"]
    assert isinstance(outcome.opened.state.opt_state[0], optax.ScaleByLionState)
    with pytest.raises(ConfigError, match=r"LionConfig\.lr is 0"):
        LionConfig(lr=0)
