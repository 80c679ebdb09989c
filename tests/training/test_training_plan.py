"""What a plan says is what the arrays and the compiled step would be."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import jax
import pytest

from xlstm_jax.config import ConfigError
from xlstm_jax.cost.exchanges import CHIPS, Exchange, exchanges, seconds
from xlstm_jax.cost.plan import plan, with_known_vocabulary
from xlstm_jax.distributed.mesh import with_mesh
from xlstm_jax.machine.memory import device_memory
from xlstm_jax.models.language_model import build_model
from xlstm_jax.presets import get_preset, preset_names
from xlstm_jax.training.build import build, fresh_state


def nbytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def small_mix():
    experiment = get_preset("xlstm_125m_7_1")
    model = dataclasses.replace(experiment.model, embedding_dim=16, num_blocks=5, slstm_at=[1, 3], vocab_size=64)
    training = dataclasses.replace(experiment.training, batch_size=4, accumulate=2)
    return on_mesh(dataclasses.replace(experiment, model=model, training=training), "dp=1")


def on_mesh(experiment, words):
    model = dataclasses.replace(experiment.model, parallel=with_mesh(experiment.model.parallel, words))
    return dataclasses.replace(experiment, model=model)


@pytest.mark.parametrize("name", [name for name in preset_names() if "7b" in name or "7_1" in name])
def test_parts_add_up_for_published_sizes_in_no_time(name: str) -> None:
    found = plan(on_mesh(get_preset(name), "dp=1"), compile="no")
    assert sum(found.params_by_part.values()) == found.params == build_model(get_preset(name).model).param_count
    assert found.training.temporaries is None
    assert found.training.total == pytest.approx(16 * found.params, rel=1e-4)
    assert found.flops_per_token_training == 3 * found.flops_per_token_forward
    assert found.flops_per_token_forward > 2 * (found.params - found.params_by_part["embedding"])


def test_sizes_of_a_mix_are_those_of_its_arrays() -> None:
    experiment = small_mix()
    found = plan(experiment, compile="no")
    model, optimizer = build(experiment)
    state = jax.eval_shape(lambda: fresh_state(model, optimizer, experiment))
    assert found.training.weights == nbytes(state.params)
    assert found.training.optimizer == nbytes(state.opt_state)
    assert found.state_bytes == nbytes(model.init_state(1))
    assert found.serving.total[8] == nbytes(state.params) + nbytes(model.init_state(8))
    assert found.training.device_rows == 2
    assert found.tokens_per_step == 4 * 2048
    ffn = 3 * 16 * 64 * 2
    assert found.params_by_part["feed-forward layers"] == ffn
    assert set(found.params_by_part) == {
        *("embedding", "head", "norms", "mLSTM layers", "sLSTM layers", "feed-forward layers")
    }


def test_a_plan_for_a_mesh_is_that_of_one_of_its_devices() -> None:
    experiment = get_preset("mlstm_v1_165m")
    one, parted = (plan(on_mesh(experiment, words), compile="no") for words in ("dp=1", "fsdp=4,tp=2"))
    assert (parted.training.devices, parted.training.mesh) == (8, "fsdp 4 x tp 2")
    # All that is large is parted over all devices; norms and gates are not.
    assert one.training.weights / 8 < parted.training.weights < 1.01 * one.training.weights / 8
    assert parted.training.optimizer == pytest.approx(2 * parted.training.weights, rel=1e-6)
    assert parted.training.device_rows == one.training.device_rows / 4


def test_exchanges_of_a_compiled_step_are_counted_with_their_loops() -> None:
    experiment = get_preset("tiny")
    model = dataclasses.replace(experiment.model, num_blocks=3, scan_blocks=True, vocab_size=300)
    training = dataclasses.replace(experiment.training, batch_size=8)
    experiment = dataclasses.replace(experiment, model=model, training=training)
    found = plan(on_mesh(experiment, "dp=2,sp=4"), chip=CHIPS["H100"]).training
    states = [x for x in found.exchanges if x.kind == "reduce-scatter"]
    assert sum(x.count for x in states) % 3 == 0
    assert all((x.group, x.span) == (4, 4) for x in states)
    assert {x.group for x in found.exchanges if x.kind == "all-gather"} == {4}
    assert sum(x.bytes for x in found.exchanges if x.kind == "all-reduce") >= found.gradients
    assert found.compute_seconds is not None
    assert found.exchange_share is not None
    assert 0 < found.exchange_share < 1
    assert json.dumps(found.to_dict())


def test_what_takes_how_long() -> None:
    line = "  %a = f32[4,1024]{1,0} all-reduce(%x), replica_groups=[4,8]<=[8,4]T(1,0), to_apply=%add"
    program = "\n".join(
        [
            "%body (p: f32[]) -> f32[] {",
            line,
            "}",
            "ENTRY %main (p: f32[]) -> f32[] {",
            '  %w = f32[] while(%p), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"6"}}',
            "  %b = (bf16[8]{0}, f32[2]{0}) all-gather(%p, %p), replica_groups=mesh['a'=4,'b'=8] {'b'}, dimensions={0}",
            "}",
        ]
    )
    reduce, gather = exchanges(program)
    assert reduce == Exchange("all-reduce", 6, 6 * 4 * 1024 * 4, 8, 29)
    assert gather == Exchange("all-gather", 1, 8 * 2 + 2 * 4, 8, 8)
    chip = CHIPS["H100"]
    assert seconds(reduce, chip) == pytest.approx(2 * 7 / 8 * reduce.bytes / chip.far)
    assert seconds(gather, chip) == pytest.approx(7 / 8 * gather.bytes / chip.near)


def test_a_step_is_compiled_and_more_rows_need_more_memory() -> None:
    experiment = get_preset("tiny")
    model = dataclasses.replace(experiment.model, num_blocks=1, context_length=16)
    needs = []
    for rows in (2, 16):
        training = dataclasses.replace(experiment.training, batch_size=rows)
        found = plan(dataclasses.replace(experiment, model=model, training=training))
        assert found.training.temporaries is not None
        assert found.training.total >= found.training.weights + found.training.optimizer + found.training.gradients
        assert found.training.compiled == "the step with a scan over the blocks, for cpu"
        needs.append(found.training.temporaries)
    # A token's activations: at least the widths that the backward pass reads, in float32.
    assert needs[1] - needs[0] > 14 * 16 * 32 * 4
    assert found.training_fits is True
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_open_vocabulary_is_that_of_the_tokenizer_to_be(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_known_vocabulary(get_preset("tiny")).model.vocab_size == 320
    assert with_known_vocabulary(get_preset("quickstart")).model.vocab_size == 4096
    tiny = get_preset("tiny")
    none = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, mlstm_block=None))
    with pytest.raises(ConfigError, match="mlstm_block"):
        plan(none, compile="no")


def test_the_device_at_hand_tells_its_memory() -> None:
    device = device_memory()
    assert device.total is not None
    assert device.free is not None
    assert 2**28 < device.free <= device.total


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlstm_v1_7b", "llama_7b"])
def test_seven_billion_parameters_are_planned_without_being_made(name: str) -> None:
    code = f"""
import json, resource
from xlstm_jax.presets import get_preset
from xlstm_jax.cost.plan import plan
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
found = plan(get_preset({name!r})).to_dict()
print(json.dumps(found | {{"grown": peak() - before}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["grown"] < 2e9 < found["training"]["weights"]
    assert found["training"]["temporaries"] > 1e9
