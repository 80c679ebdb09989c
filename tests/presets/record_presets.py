"""Records what each preset is, so that a diff shows what a change changes.

    python tests/presets/record_presets.py [PRESET...]

Writes tests/golden/presets/PRESET.txt with the experiment's config, that of each kind of its blocks as the stack fills
it in, and each parameter: name, dtype, shape, logical axes, part, and what may be done to it. Equal neighbours stand
as one run of blocks, so that a deep model has no more lines than a shallow one. For small models there are also the
operations of the training step before XLA optimises it, which hold for one version of JAX. No array is made.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from xlstm_jax.cost.plan import with_known_vocabulary
from xlstm_jax.data.store import Batch
from xlstm_jax.models.language_model import build_model
from xlstm_jax.models.parameters import Leaf, describe
from xlstm_jax.presets import get_preset, preset_names
from xlstm_jax.training.build import build, fresh_state
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.step import make_train_step

FOLDER = Path(__file__).parents[1] / "golden" / "presets"
OPERATIONS = f"[operations of a training step, JAX {jax.__version__}]"
LOWERED = ("tiny", "quickstart", "quickstart_mixed", "quickstart_llama")
"""Presets small enough to be lowered whenever the tests run."""


def experiment(name: str) -> Experiment:
    """The preset, with the vocabulary that its tokenizer will have; a store that happens to be here says nothing."""
    found = get_preset(name)
    return with_known_vocabulary(
        dataclasses.replace(found, data=dataclasses.replace(found.data, store=f"no/store/of/{name}"))
    )


def flat(value: Any, path: str) -> Iterator[str]:
    """`path = value` for everything under a JSON value that is not itself an object."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from flat(below, f"{path}.{key}" if path else key)
    else:
        yield f"{path} = {json.dumps(value)}"


def description(name: str) -> str:
    """Configs and parameters of a preset, a line each."""
    preset = get_preset(name)
    model = experiment(name).model
    lines = ["[config]", *flat(preset.to_dict(), "")]
    for kind in sorted(set(model.block_kinds)):
        block = model.block_config(model.block_kinds.index(kind))
        if block is not model:
            lines += ["", f"[config of an {kind} block]", *flat(block.to_dict(), "")]
    scanned = dataclasses.replace(model, scan_blocks=True)
    shapes = jax.eval_shape(build_model(scanned).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    leaves = jax.tree.leaves(describe(shapes, model.block_kinds), is_leaf=lambda node: isinstance(node, Leaf))
    lines += ["", "[parameters]"]
    for leaf, array in zip(leaves, jax.tree.leaves(shapes), strict=True):
        axes = " ".join(axis or "-" for axis in leaf.axes)
        marks = ["decays"] * leaf.decays + ["matrix"] * leaf.matrix + ["adapter"] * leaf.adapter
        lines.append(", ".join([f"{leaf.path}: {array.dtype}{list(array.shape)} ({axes})", leaf.part, *marks]))
    return "\n".join(lines) + "\n"


def operations(name: str) -> str:
    """How often each operation stands in the training step of a preset, a line each."""
    preset = experiment(name)
    model, optimizer = build(preset)
    shape = (preset.training.batch_size, preset.seq_len)
    tokens: Any = jax.ShapeDtypeStruct(shape, jnp.int32)
    flags: Any = jax.ShapeDtypeStruct(shape, jnp.bool_)
    rows = Batch(inputs=tokens, targets=tokens, document_borders=flags, loss_mask=flags)
    step: Any = make_train_step(
        model, optimizer, accumulate=preset.training.accumulate, dropout=preset.model.dropout > 0
    )
    state = jax.eval_shape(lambda: fresh_state(model, optimizer, preset))
    # Named, and not as an attribute's dialect: `#stablehlo.dot<...>`.
    found = re.findall(r'(?<![#\w.])"?((?:stablehlo|chlo)\.\w+|call) ?[%"@(]?', step.lower(state, rows).as_text())
    return "\n".join(f"{word} {count}" for word, count in sorted(Counter(found).items())) + "\n"


def main(names: list[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or preset_names():
        text = description(name)
        if name in LOWERED:
            text += f"\n{OPERATIONS}\n{operations(name)}"
        (FOLDER / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
