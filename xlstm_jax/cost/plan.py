"""What an experiment will cost, before it costs anything: parameters, operations, memory; no array is made."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from xlstm_jax.cost.exchanges import EFFICIENCY, Chip, Exchange, exchanges, seconds
from xlstm_jax.data.store import INDEX_FILE, Batch, open_store
from xlstm_jax.data.tokenizers import load_tokenizer
from xlstm_jax.distributed.mesh import axes_of
from xlstm_jax.distributed.placement import Placement
from xlstm_jax.machine.memory import DeviceMemory, device_memory
from xlstm_jax.models.parameters import Leaf, describe
from xlstm_jax.training.build import build, fresh_state
from xlstm_jax.training.config import Experiment, with_vocabulary
from xlstm_jax.training.layout import micro_batches, place, placed
from xlstm_jax.training.step import TrainState, make_train_step

Compile = Literal["blocks", "exact", "no"]

SERVING_BATCHES = (1, 8, 64)

QUICK_CPU_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Leaves out what comes after memory has been laid out: half of the time."""


@dataclass
class TrainingMemory:
    """Bytes on one device while it trains."""

    batch_size: int
    """Rows in a step."""
    device_rows: int
    """Rows that are worked on at once."""
    seq_len: int
    weights: int
    gradients: int
    optimizer: int
    temporaries: int | None = None
    """What the compiled step needs beside weights, gradients and optimizer state: activations, and working space of
    the operations. None if it was not compiled."""
    compiled: str = "not compiled"
    """How `temporaries` was found."""
    compile_seconds: float | None = None
    devices: int = 1
    mesh: str = "one device"
    """The axes that part it; sizes and rows are those of one of the devices."""
    exchanges: list[Exchange] = field(default_factory=list)
    """What the devices exchange in a step, the largest first; sizes are those of the program for the processor, which
    widens what is in bfloat16."""
    exchange_seconds: float | None = None
    """What these take at least, at the stated speeds of the links."""
    compute_seconds: float | None = None
    """What the products of a step take at half of the stated speed of the chips."""

    @property
    def exchange_share(self) -> float | None:
        """The share of a step that exchanges take where nothing else is done meanwhile."""
        if self.exchange_seconds is None or self.compute_seconds is None:
            return None
        return self.exchange_seconds / (self.exchange_seconds + self.compute_seconds)

    @property
    def total(self) -> int:
        """Sum of the parts; without `temporaries` it is a lower bound."""
        return self.weights + self.gradients + self.optimizer + (self.temporaries or 0)

    def to_dict(self) -> dict[str, Any]:
        """The fields, `total` and `exchange_share`."""
        return dataclasses.asdict(self) | {"exchange_share": self.exchange_share, "total": self.total}


@dataclass
class ServingMemory:
    """Bytes on one device while it generates: the weights, and a state for each sequence."""

    weights: int
    state_per_sequence: int
    total: dict[int, int] = field(default_factory=dict)
    """Batch size -> weights and states."""


@dataclass
class Plan:
    """The cost of an experiment. Sizes are in bytes; operations count matrix products alone, a multiplication and an
    addition as two."""

    params: int
    """Number of parameters."""
    params_by_part: dict[str, int]
    flops_per_token_forward: float
    """At a sequence length of `training.seq_len`."""
    flops_per_token_training: float
    """Forward and backward, without recomputation."""
    tokens_per_step: int
    steps: int
    state_bytes: int
    """State of one sequence."""
    training: TrainingMemory
    serving: ServingMemory
    device: DeviceMemory

    @property
    def flops(self) -> float:
        """Operations of the whole training."""
        return self.flops_per_token_training * self.tokens

    @property
    def tokens(self) -> int:
        """Tokens of the whole training."""
        return self.tokens_per_step * self.steps

    @property
    def training_fits(self) -> bool | None:
        """Whether training fits on the device; None where its memory is unknown, or the need only a lower bound."""
        if self.fits(self.training.total) and self.training.temporaries is None:
            return None
        return self.fits(self.training.total)

    def fits(self, size: int) -> bool | None:
        """Whether so many bytes fit on the device; None where its memory is unknown."""
        return None if self.device.total is None else size <= self.device.total

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values: the fields, and `tokens`, `flops`, `training.total` and what fits."""
        data = dataclasses.asdict(self)
        data["training"] = self.training.to_dict() | {"fits": self.training_fits}
        data["serving"]["total"] = {str(batch): size for batch, size in self.serving.total.items()}
        data["serving"]["fits"] = {str(batch): self.fits(size) for batch, size in self.serving.total.items()}
        return data | {"tokens": self.tokens, "flops": self.flops}


def plan(experiment: Experiment, compile: Compile = "blocks", chip: Chip | None = None) -> Plan:
    """The cost of an experiment, on each of the devices that its mesh parts it over.

    Args:
        experiment: what to train. A vocabulary that it leaves to the tokenizer is taken from its store if that is
            there, else from what `data` asks for.
        compile: what to compile for the memory of a training step, from shapes alone. "blocks": the step with a scan
            over each run of equal blocks, which takes a few seconds whatever the depth; on stacks of eight blocks it
            came within a tenth of what the unrolled step needs. "exact": the very step that
            would be trained, which for many blocks without `scan_blocks` takes minutes, and on a processor finds far
            too much where activations are recomputed: its compiler undoes that outside of a scan. "no": nothing.
        chip: what it is to run on; the device at hand if None.

    Raises:
        ConfigError: for an experiment that cannot be built, or not be laid out over the devices that JAX sees.
    """
    experiment = with_known_vocabulary(experiment)
    model, _ = build(experiment)
    # The same parameters, but neighbouring blocks of one kind are traced and compiled once, whatever the depth.
    scanned = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, scan_blocks=True))
    placement = place(experiment)
    shapes = _state_shapes(scanned, placement)
    weights, opt_bytes = _bytes(shapes.params), _bytes(shapes.opt_state)
    parts = _params_by_part(scanned, shapes.params)
    settings, seq_len = experiment.training, experiment.seq_len
    devices, parting = 1, 1
    if placement.mesh is not None:
        axes = axes_of(placement.mesh)
        devices, parting = placement.mesh.size, axes.sizes["data"] * axes.sizes["fsdp"]
    training = TrainingMemory(
        batch_size=settings.batch_size,
        device_rows=settings.batch_size // micro_batches(settings, placement) // parting,
        seq_len=seq_len,
        weights=weights,
        gradients=weights,
        optimizer=opt_bytes,
        devices=devices,
        mesh=placement.in_words(),
    )
    if compile != "no":
        start = time.perf_counter()
        exact = compile == "exact" or experiment.model.scan_blocks
        temporaries, training.exchanges = _compiled(experiment if exact else scanned, placement)
        how = "the step" if exact else "the step with a scan over the blocks"
        training.compile_seconds = time.perf_counter() - start
        training.temporaries = max(temporaries - training.gradients, 0)
        training.compiled = f"{how}, for {jax.default_backend()}"
    if chip is not None:
        tokens = settings.batch_size * seq_len
        training.compute_seconds = model.flops_per_token(seq_len, train=True) * tokens / devices / chip.flops
        training.compute_seconds /= EFFICIENCY
        if compile != "no":
            training.exchange_seconds = sum(seconds(exchange, chip) for exchange in training.exchanges)
    state = model.state_bytes
    totals = {batch: weights + batch * state for batch in SERVING_BATCHES}
    return Plan(
        params=sum(parts.values()),
        params_by_part=parts,
        flops_per_token_forward=model.flops_per_token(seq_len),
        flops_per_token_training=model.flops_per_token(seq_len, train=True),
        tokens_per_step=settings.batch_size * seq_len,
        steps=settings.steps,
        state_bytes=state,
        training=training,
        serving=ServingMemory(weights, state, totals),
        device=device_memory() if chip is None else DeviceMemory(chip.name, chip.memory, None),
    )


def with_known_vocabulary(experiment: Experiment) -> Experiment:
    """A copy whose vocabulary size is set, as far as can be told without reading any text.

    Raises:
        ConfigError: if the model's own vocabulary is smaller than the tokenizer's.
        DataError: for a store or tokenizer that cannot be read.
    """
    data = experiment.data
    if (data.store_path() / INDEX_FILE).is_file():
        return with_vocabulary(experiment, open_store(data.store_path()).vocab_size)
    if experiment.model.vocab_size != -1:
        return experiment
    if data.tokenizer == "bpe":
        return with_vocabulary(experiment, data.vocab_size)
    given = load_tokenizer(data.tokenizer, eod=data.eod, drop_normalizer=data.drop_normalizer)
    return with_vocabulary(experiment, given.vocab_size)


def _state_shapes(experiment: Experiment, placement: Placement) -> TrainState:
    model, optimizer = build(experiment)
    return placed(placement, model, jax.eval_shape(lambda: fresh_state(model, optimizer, experiment)))


def _params_by_part(experiment: Experiment, params: Any) -> dict[str, int]:
    parts: Counter[str] = Counter()
    leaves = jax.tree.leaves(describe(params, experiment.model.block_kinds), is_leaf=lambda x: isinstance(x, Leaf))
    for leaf, array in zip(leaves, jax.tree.leaves(params), strict=True):
        parts[leaf.part] += math.prod(array.shape)
    return dict(parts)


def _bytes(tree: Any) -> int:
    """On one device."""

    def shape(leaf: Any) -> tuple[int, ...]:
        sharding = getattr(leaf, "sharding", None)
        return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)

    return sum(math.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _compiled(experiment: Experiment, placement: Placement) -> tuple[int, list[Exchange]]:
    """Bytes that the compiled training step needs on a device beside its state, and what devices exchange in it."""
    model, optimizer = build(experiment)
    training = experiment.training
    shape = (training.batch_size, experiment.seq_len)
    tokens: Any = jax.ShapeDtypeStruct(shape, jnp.int32)
    flags: Any = jax.ShapeDtypeStruct(shape, jnp.bool_)
    rows = Batch(inputs=tokens, targets=tokens, document_borders=flags, loss_mask=flags)
    micro = micro_batches(training, placement)
    rows = placement.row_shapes(rows, micro)
    state = _state_shapes(experiment, placement)
    step: Any = make_train_step(
        model,
        optimizer,
        seed=training.seed,
        accumulate=micro,
        dropout=experiment.model.dropout > 0,
        shardings=None if placement.mesh is None else jax.tree.map(lambda leaf: leaf.sharding, state),
        parallel=placement.parallel,
    )
    options = QUICK_CPU_COMPILE if jax.default_backend() == "cpu" else None
    with placement.active():
        compiled = step.lower(state, rows).compile(compiler_options=options)
    found = [] if placement.mesh is None else exchanges(compiled.as_text())
    memory = compiled.memory_analysis()
    if memory is None:
        return 0, found
    fresh_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + max(fresh_outputs, 0), found
