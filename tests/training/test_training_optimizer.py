"""The optimizer does what its config says: rates, decay and its mask, clipping."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import Recorder, tiny_experiment

from xlstm_jax.config import ConfigError, dumps
from xlstm_jax.models.layouts import to_blocks
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.events import Stepped
from xlstm_jax.training.loop import train
from xlstm_jax.training.optimizers import (
    AdafactorConfig,
    AdEMAMixConfig,
    ChainConfig,
    LionConfig,
    MuonConfig,
    OptimizerConfig,
    SGDConfig,
    learning_rate,
)
from xlstm_jax.training.optimizers.chain import decay_mask
from xlstm_jax.training.optimizers.muon import newton_schulz

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


def drawn(seed: int) -> dict:
    """Parameters of two blocks in a run, or gradients for them: a matrix, a bias and a norm, and a head."""
    rng = np.random.default_rng(seed)
    shapes = {"proj_up": {"kernel": (2, 4, 6), "bias": (2, 6)}}
    tree = {"blocks_0_1": {"ffn": shapes, "ffn_norm": {"scale": (2, 4)}}, "lm_head": {"kernel": (4, 3)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32), tree, is_leaf=lambda x: isinstance(x, tuple)
    )


def dimensions(params: dict) -> dict:
    """Which of these are Muon's, in the words of optax."""
    numbers = optax.contrib.MuonDimensionNumbers(-2, -1)

    def of(path: Any, _: Any) -> Any:
        return numbers if jax.tree_util.keystr(path, simple=True, separator=".").endswith("proj_up.kernel") else None

    return jax.tree_util.tree_map_with_path(of, params)


PLAIN: dict[str, Any] = {"lr": 0.1, "schedule": "constant", "warmup_steps": 0, "grad_clip_norm": None}
DECAYS: dict[str, Any] = PLAIN | {"weight_decay": 0.1, "decay_mask": "all"}
SHORT: dict[str, Any] = {"alpha_warmup": 0, "beta3_warmup": 0}
OPTAX = {
    "sgd": (SGDConfig(**PLAIN | {"weight_decay": 0.0}), optax.sgd(0.1, 0.9)),
    "nesterov": (SGDConfig(**PLAIN | {"weight_decay": 0.0}, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
    "lion": (LionConfig(**DECAYS), optax.lion(0.1, weight_decay=0.1)),
    "adafactor": (AdafactorConfig(**PLAIN, min_dim_size_to_factor=3), optax.adafactor(0.1, min_dim_size_to_factor=3)),
    "ademamix": (AdEMAMixConfig(**DECAYS, **SHORT), optax.contrib.ademamix(0.1, alpha=8.0, weight_decay=0.1)),
    "muon": (
        MuonConfig(**DECAYS, nesterov=False),
        optax.contrib.muon(
            *(0.1,),
            **{"nesterov": False, "weight_decay": 0.1, "adam_weight_decay": 0.1, "adam_b2": 0.95},
            **{"muon_weight_dimension_numbers": dimensions, "consistent_rms": 0.2},
        ),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_an_optimizer_moves_parameters_as_that_of_optax_and_blocks_as_if_alone(name: str) -> None:
    config, theirs = OPTAX[name]

    def steps(init: Any, update: Any, params: Any, of: Any) -> Any:
        state = init(params)
        for step in range(1, 4):
            updates, state = jax.jit(update)(of(drawn(step)), state, params)
            params = optax.apply_updates(params, updates)
        return params

    ours = config.build(3)
    alone = steps(ours.init, ours.update, to_blocks(drawn(0)), to_blocks)
    in_run = to_blocks(steps(ours.init, ours.update, drawn(0), lambda tree: tree))
    truth = steps(theirs.init, theirs.update, to_blocks(drawn(0)), to_blocks)
    # Entries are about 1. Newton-Schulz raises what is small by up to 3.4 in each of 5 steps, errors too.
    bound = 3.5**5 * EPS if name == "muon" else 32 * EPS
    for found in (alone, in_run):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=bound), found, truth)


def test_muon_makes_matrices_orthogonal_and_its_updates_as_large_as_said() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8, 20)), jnp.float32)
    values = np.linalg.svd(newton_schulz(x, 5, 1e-8), compute_uv=False)
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    optimizer = MuonConfig(**PLAIN, consistent_rms=0.5, weight_decay=0.0).build(1)
    params = {"blocks_0_2": {"xlstm": {"q": {"kernel": x}}}}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert float(jnp.sqrt(jnp.mean(updates["blocks_0_2"]["xlstm"]["q"]["kernel"] ** 2))) == pytest.approx(0.05, rel=0.3)


def test_the_slow_mean_of_ademamix_becomes_slow_as_the_paper_says() -> None:
    config = AdEMAMixConfig(**PLAIN, betas=(0.9, 0.99, 0.999), alpha=5.0, alpha_warmup=8)
    optimizer, params = config.build(10), {"lm_head": {"kernel": jnp.ones((1, 1))}}
    state, slow, fast, final = optimizer.init(params), 0.0, np.log(0.9), np.log(0.999)
    for step in range(1, 13):
        updates, state = optimizer.update(params, state, params)
        share = min(step / 10, 1)
        beta = np.exp(fast * final / ((1 - share) * final + share * fast))
        slow = beta * slow + (1 - beta)
        # The gradient is 1, and so are the corrected mean and the mean of squares.
        wanted = -0.1 * (1 + 5 * min(step / 8, 1) * slow + config.weight_decay)
        np.testing.assert_allclose(updates["lm_head"]["kernel"], wanted, rtol=1e-4)


@dataclass
class RMSPropConfig(ChainConfig):
    """What a file of another optimizer holds."""

    name: Literal["rmsprop"] = "rmsprop"
    decay: float = 0.9

    def direction(self, total_steps: int) -> optax.GradientTransformation:
        return optax.scale_by_rms(self.decay)


@dataclass
class OtherExperiment(Experiment):
    """With the union that the other optimizer's name would join."""

    optimizer: OptimizerConfig | RMSPropConfig = field(default_factory=RMSPropConfig)  # type: ignore[assignment]


def test_another_optimizer_is_one_class_that_its_name_tells_from_the_others(store: Path, tmp_path: Path) -> None:
    plain = tiny_experiment(store=store, steps=4, eval_every=0)
    rmsprop = RMSPropConfig(lr=1e-3, warmup_steps=1)
    experiment = OtherExperiment(plain.model, plain.data, rmsprop, plain.training)
    assert OtherExperiment.from_dict(json.loads(dumps(experiment))) == experiment
    recorder = Recorder()
    outcome = train(tmp_path / "run", experiment, [recorder])
    records = [event.record for event in recorder.events if isinstance(event, Stepped)]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert records[0]["lr"] == pytest.approx(1e-3)
    assert records[-1]["loss"] < records[0]["loss"]
    assert isinstance(outcome.opened.state.opt_state[1][0], optax.ScaleByRmsState)
    with pytest.raises(ConfigError, match=r"RMSPropConfig\.lr is 0"):
        RMSPropConfig(lr=0)
