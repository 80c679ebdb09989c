"""Config dataclasses are checked against their annotations, once, in Python and from JSON alike."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xlstm_jax
from xlstm_jax.config import (
    Above,
    AtLeast,
    AtMost,
    Below,
    Config,
    ConfigError,
    DropoutRate,
    OneOf,
    PositiveInt,
    field_kind,
    from_json,
    public_fields,
)
from xlstm_jax.models.configs import FLOAT_NAMES
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig
from xlstm_jax.training.config import TrainingConfig
from xlstm_jax.training.optimizers import OptimizerConfig


@dataclass
class Inner(Config):
    size: PositiveInt = 3


@dataclass
class Outer(Config):
    count: PositiveInt = 1
    unset: PositiveInt | Literal[-1] = -1
    rate: DropoutRate = 0.0
    share: Annotated[float, Above(0), AtMost(1)] | None = None
    pair: tuple[Annotated[float, AtLeast(0), Below(1)], Annotated[float, AtLeast(0), Below(1)]] = (0.5, 0.5)
    start: tuple[float, float] | float | None = None
    words: tuple[str, ...] = ()
    places: list[int] | Literal["all"] = field(default_factory=list)
    colour: Literal["red", "green"] = "red"
    known: Annotated[str, OneOf(("ant", "bee"))] = "ant"
    on: bool = False
    inner: Inner | None = None
    free: dict[str, Any] = field(default_factory=dict)
    _derived: int = 0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"count": 0}, "Outer.count is 0, but must be a whole number >= 1"),
        ({"count": 2.0}, "Outer.count is 2.0, but must be a whole number >= 1"),
        ({"count": True}, "Outer.count is True, but must be a whole number >= 1"),
        ({"count": None}, "Outer.count is None, but must be a whole number >= 1"),
        ({"count": 2**31}, "Outer.count is 2147483648, but must be a whole number >= 1 and < 2**31"),
        ({"unset": 0}, "Outer.unset is 0, but must be a whole number >= 1 and < 2**31 or -1"),
        ({"rate": 1}, "Outer.rate is 1, but must be a number >= 0 and < 1"),
        ({"rate": math.nan}, "Outer.rate is nan, but must be a number >= 0 and < 1"),
        ({"rate": 10**400}, "but must be a number >= 0 and < 1"),
        ({"share": 0.0}, "Outer.share is 0.0, but must be a number > 0 and <= 1 or None"),
        ({"pair": (0.5, 1.0)}, "Outer.pair is (0.5, 1.0), but must be two numbers >= 0 and < 1"),
        ({"pair": (0.5,)}, "Outer.pair is (0.5,), but must be two numbers >= 0 and < 1"),
        ({"start": "low"}, "Outer.start is 'low', but must be two numbers, a number or None"),
        ({"words": "ab"}, "Outer.words is 'ab', but must be a list of texts"),
        ({"places": [1, "x"]}, "Outer.places is [1, 'x'], but must be a list of whole numbers or 'all'"),
        ({"colour": "greem"}, "Outer.colour is 'greem', but must be one of 'red', 'green' (did you mean 'green'?)"),
        ({"known": "be"}, "Outer.known is 'be', but must be one of 'ant', 'bee' (did you mean 'bee'?)"),
        ({"on": 1}, "Outer.on is 1, but must be true or false"),
        ({"inner": {"size": 3}}, "Outer.inner is {'size': 3}, but must be Inner or None"),
        ({"free": 3}, "Outer.free is 3, but must be a dict"),
    ],
)
def test_a_value_that_does_not_fit_its_annotation_is_named_with_what_would(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Outer(**fields)
    assert sentence in str(error.value)
    with pytest.raises(ConfigError):
        dataclasses.replace(Outer(), **fields)


def test_lists_become_tuples_and_whole_numbers_floats_where_the_type_says_so() -> None:
    made = Outer(pair=[0, 0.5], words=["a"], places=(1, 2), rate=0, start=[-3, 3])  # type: ignore[arg-type]
    assert (made.pair, made.words, made.places, made.start) == ((0.0, 0.5), ("a",), [1, 2], (-3.0, 3.0))
    assert [type(value) for value in (made.rate, made.pair[0])] == [float, float]
    assert from_json(Outer, made.to_dict()) == made


def test_numbers_of_numpy_are_numbers() -> None:
    made = Outer(count=np.int64(3), rate=np.float32(0.5), pair=(np.float64(0.25), np.int8(0)))  # type: ignore[arg-type]
    assert [type(value) for value in (made.count, made.rate, *made.pair)] == [int, float, float, float]
    assert (made.count, made.rate, made.pair) == (3, 0.5, (0.25, 0.0))


def test_a_list_is_not_shared_with_its_giver() -> None:
    given = [1]
    made = Outer(places=given)
    given.append(2)
    assert made.places == [1]


def test_a_default_that_does_not_fit_must_be_replaced() -> None:
    @dataclass
    class Needs(Config):
        size: int = 0

    Needs.__annotations__["size"] = PositiveInt
    with pytest.raises(ConfigError, match=r"Needs\.size is 0"):
        Needs()
    assert Needs(size=2).size == 2


@dataclass
class Adam(Config):
    name: Literal["adam"] = "adam"
    lr: float = 1.0
    beta: float = 0.9


@dataclass
class Sign(Config):
    name: Literal["sign"] = "sign"
    lr: float = 1.0


@dataclass
class Uses(Config):
    optimizer: Adam | Sign = field(default_factory=Adam)


def test_a_union_is_told_apart_by_its_names() -> None:
    assert from_json(Uses, {"optimizer": {"name": "sign", "lr": 2}}).optimizer == Sign(lr=2.0)
    for data, sentence in (
        ({"name": "sign", "lr": 2, "beta": 1}, "Uses.optimizer has no field 'beta'; its fields are name, lr"),
        ({"name": "sign", "lr": "x", "beta": 1}, "Uses.optimizer has no field 'beta'"),
        ({"name": "adan"}, "Uses.optimizer.name is 'adan', but must be one of 'adam', 'sign' (did you mean 'adam'?)"),
        ({"name": ["adam"]}, "Uses.optimizer.name is ['adam'], but must be one of 'adam', 'sign'"),
    ):
        with pytest.raises(ConfigError) as error:
            from_json(Uses, {"optimizer": data})
        assert sentence in str(error.value)


def config_classes() -> list[type]:
    for module in pkgutil.walk_packages(xlstm_jax.__path__, "xlstm_jax."):
        if not module.name.endswith(("__main__", "lm_eval.harness")):  # which starts, or needs an extra
            importlib.import_module(module.name)
    found, open_ = set(), [Config]
    while open_:
        open_ += (below := open_.pop().__subclasses__())
        found |= {kind for kind in below if kind.__module__.startswith("xlstm_jax.")}
    return sorted(found, key=lambda kind: kind.__name__)


def test_every_field_of_every_config_says_what_it_takes() -> None:
    classes = config_classes()
    assert len(classes) > 20
    for kind in classes:
        for f in public_fields(kind):
            taken = field_kind(kind, f.name)
            # `Sequence` stands in a signature alone.
            assert taken.wanted != "anything" or (kind.__name__, f.name) == ("Sampling", "stop")
            if "dtype" in f.name and "own" not in f.name:
                assert set(taken.choices) <= {*FLOAT_NAMES}
                assert taken.choices


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_what_arrays_hold_are_values_wherever_a_config_takes_them(loose_types: None, of: Any) -> None:
    training = TrainingConfig(steps=of(5), batch_size=of(4), eval_tokens=None, sample_prompts=np.array(["a", "b"]))
    assert training == TrainingConfig(steps=5, batch_size=4, eval_tokens=None, sample_prompts=("a", "b"))
    assert OptimizerConfig(lr=of(0.5)) == OptimizerConfig(lr=0.5)
    model = xLSTMLMModelConfig(num_blocks=of(3), slstm_at=of([0, 2]), bias=of(True), vocab_size=of(-1), dropout=of(0.5))
    assert model == xLSTMLMModelConfig(num_blocks=3, slstm_at=[0, 2], bias=True, vocab_size=-1, dropout=0.5)
    assert type(model.num_blocks) is int
    assert type(model.bias) is bool
    assert from_json(TrainingConfig, {"steps": of(5)}).steps == 5
    with pytest.raises(ConfigError, match=r"TrainingConfig\.steps is .*True.*, but must be a whole number >= 1"):
        TrainingConfig(steps=of(True))
    with pytest.raises(ConfigError, match=r"TrainingConfig\.steps is .*, but must be a whole number >= 1"):
        TrainingConfig(steps=of([5]))


def test_a_traced_value_is_no_setting() -> None:
    with pytest.raises(ConfigError, match=r"OptimizerConfig\.lr is .*Tracer"):
        jax.jit(lambda lr: OptimizerConfig(lr=lr).lr)(0.1)
