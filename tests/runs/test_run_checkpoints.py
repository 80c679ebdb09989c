import errno
import shutil
import threading
import time
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.files import DiskFullError, held_folder
from xlstm_jax.runs import checkpoints as module
from xlstm_jax.runs import manifest
from xlstm_jax.runs.checkpoints import Checkpoints
from xlstm_jax.runs.errors import (
    CheckpointError,
    DamagedCheckpointError,
    NoCheckpointError,
    StateMismatchError,
)
from xlstm_jax.runs.storage import bytes_needed

Moments = namedtuple("Moments", ["first", "second", "nothing"])


def make_state(step):
    key = jax.random.key(step)
    return {
        "params": {
            "block": {"w": jax.random.normal(key, (37, 5)), "b": jnp.full(3, step, jnp.bfloat16)},
            "e": jnp.zeros((0, 2)),
        },
        "optimizer": [Moments(jax.random.normal(key, (4,)), np.arange(3, dtype=np.int64) + step, ()), {}],
        "step": jnp.int32(step),
        "key": jax.random.key_data(key),
        "empty": (),
    }


def abstract():
    return jax.eval_shape(lambda: {k: v for k, v in make_state(0).items() if k != "optimizer"}) | {
        "optimizer": [Moments(jax.ShapeDtypeStruct((4,), jnp.float32), np.zeros(3, np.int64), ()), {}]
    }


def assert_equal(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def three(folder):
    """A folder with checkpoints of the steps 10, 20 and 30."""
    with Checkpoints(folder) as saved:
        for step in (10, 20, 30):
            saved.save(step, make_state(step), {"tokens": step * 7, "best": 0.1})
    return folder


def data_file(folder, step, part="params"):
    """The largest file of a part."""
    return max(
        (p for p in (folder / f"{step:08d}/state/{part}").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip(path, where=0.5):
    data = bytearray(path.read_bytes())
    data[min(int(len(data) * where), len(data) - 1)] ^= 4
    path.write_bytes(data)


# -- saving and restoring ---------------------------------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit_in_the_structure_asked_for(three):
    with Checkpoints(three) as saved:
        assert saved.steps() == [10, 20, 30]
        for step in (None, 30, 20, 10):
            found, state, extra = saved.restore(abstract(), step)
            assert found == (step or 30)
            assert extra == {"tokens": found * 7, "best": 0.1}
            assert_equal(state, make_state(found))


def test_a_state_may_be_donated_as_soon_as_save_returns(folder):
    @jax.jit
    def fresh(step):
        return {"params": [jax.random.normal(jax.random.key(i), (200_000,)) + step for i in range(4)]}

    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(folder) as saved:
        state, host = fresh(1.0), np.ones(300_000)
        wanted = jax.tree.map(lambda x: np.array(x, copy=True), state)
        saved.save(1, state | {"host": host})
        for _ in range(20):
            state = overwrite(state)
        host[:] = 2
        jax.block_until_ready(state)
        _, found, _ = saved.restore(state | {"host": host})
    assert_equal(found["params"], wanted["params"])
    assert (found["host"] == 1).all()


def test_saving_does_not_wait_for_the_files(folder, monkeypatch):
    go_on = threading.Event()

    def slow(*args):
        go_on.wait(20)
        return manifest.write_manifest(*args)

    monkeypatch.setattr(module, "write_manifest", slow)
    with Checkpoints(folder) as saved:
        saved.save(1, make_state(1))
        assert saved.latest_step() is None
        go_on.set()
        saved.wait()
        assert saved.latest_step() == 1


def test_one_part_is_read_without_the_others(three):
    shutil.rmtree(three / "00000030/state/optimizer")
    reader = Checkpoints(three, read_only=True)
    step, params, extra = reader.restore_part("params")
    assert (step, extra["tokens"]) == (30, 210)
    assert_equal(params, make_state(30)["params"])
    assert_equal(reader.restore_part("params", abstract()["params"])[1], make_state(30)["params"])
    assert_equal(reader.restore_part("step")[1], jnp.int32(30))
    step, _, extra = reader.restore(abstract())
    assert (step, extra) == (20, {"tokens": 140, "best": 0.1})


def test_arrays_go_where_their_sharding_says(three):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.ShapeDtypeStruct((), jnp.int32, sharding=device)
    _, step, _ = Checkpoints(three, read_only=True).restore_part("step", target)
    assert step.sharding == device
    assert step.committed
    assert not Checkpoints(three, read_only=True).restore_part("step")[1].committed


def test_float64_survives(folder, x64):
    with Checkpoints(folder) as saved:
        saved.save(0, {"a": jnp.float64(1) / 3})
        assert saved.restore({"a": jnp.float64(0)})[1]["a"] == jnp.float64(1) / 3


def test_the_last_ones_are_kept(three):
    with Checkpoints(three, keep=2) as saved:
        saved.save(31, make_state(31))
        saved.wait()
        assert saved.steps() == [30, 31]
    assert sorted(p.name for p in three.iterdir()) == ["00000030", "00000031"]


def test_a_failed_save_costs_no_older_checkpoint(three, monkeypatch):
    monkeypatch.setattr(module, "write_manifest", lambda *_: 1 / 0)
    with Checkpoints(three, keep=1) as saved:
        saved.save(40, make_state(40))
        with pytest.raises(CheckpointError, match=r"step 40 was not saved in .*: division by zero"):
            saved.wait()
        assert saved.steps() == [10, 20, 30]
        monkeypatch.undo()
        saved.save(41, make_state(41))
        saved.wait()
        assert saved.steps() == [41]


def test_an_error_in_the_background_is_raised_by_the_next_save(folder, monkeypatch):
    monkeypatch.setattr(module, "write_manifest", lambda *_: 1 / 0)
    saved = Checkpoints(folder)
    saved.save(1, make_state(1))
    with pytest.raises(CheckpointError, match="step 1 was not saved"):
        saved.save(2, make_state(2))
    saved.close()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("step", [30, 29, 0, -1])
def test_a_save_that_would_save_nothing_is_an_error(three, step):
    with Checkpoints(three) as saved, pytest.raises(CheckpointError, match="nothing was saved"):
        saved.save(step, make_state(step))


def test_a_save_that_wrote_nothing_is_an_error(folder, monkeypatch):
    with Checkpoints(folder) as saved:
        monkeypatch.setattr(saved._writer, "start", lambda *_: None)
        saved.save(1, make_state(1))
        with pytest.raises(CheckpointError, match="nothing was saved for 'params'"):
            saved.wait()
        assert saved.steps() == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "dict of named parts"),
        ({"a/b": jnp.zeros(1)}, "'a/b' cannot name a part"),
        ({"a": {"x": 3}}, "a/x is 3 of type int"),
        ({"a": jax.random.key(0)}, "a is a typed random key"),
        ({"a": {"x.y": jnp.zeros(1), "x": {"y": jnp.zeros(1)}}}, "two arrays"),
    ],
)
def test_a_state_that_cannot_be_saved_is_refused(folder, state, message):
    with Checkpoints(folder) as saved, pytest.raises(CheckpointError, match=message):
        saved.save(1, state)


@pytest.mark.parametrize("extra", [{"a": float("nan")}, {"a": (1, 2)}, {"a": {3}}, {1: 2}])
def test_extra_values_that_would_not_come_back_are_refused(folder, extra):
    with Checkpoints(folder) as saved, pytest.raises(CheckpointError, match="extra values"):
        saved.save(1, make_state(1), extra)


def test_a_reader_changes_nothing(three):
    reader = Checkpoints(three, read_only=True)
    with pytest.raises(CheckpointError, match="reading only"):
        reader.save(40, make_state(40))


def test_keep_must_be_positive(folder):
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(folder, keep=0)


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_arrays_that_do_not_fit_are_named(three):
    with Checkpoints(three) as saved:
        target = abstract()
        target["params"]["block"] = {"w": jax.ShapeDtypeStruct((37, 6), jnp.float32), "c": target["step"]}
        with pytest.raises(StateMismatchError) as caught:
            saved.restore(target)
        for part in (
            "params/block/w is float32[37, 5] in the checkpoint, but float32[37, 6] is wanted",
            "params/block/c is not in the checkpoint",
            "params/block/b is in the checkpoint, but not wanted",
        ):
            assert part in str(caught.value)
        target = abstract()
        target["step"] = jax.ShapeDtypeStruct((), jnp.uint32)
        with pytest.raises(StateMismatchError, match=r"step is int32\[\] in the checkpoint, but uint32\[\] is wanted"):
            saved.restore(target)
        del target["step"]
        with pytest.raises(StateMismatchError, match="'step' is not wanted"):
            saved.restore(target)
        with pytest.raises(StateMismatchError, match="there is no 'weights'"):
            saved.restore_part("weights")
        assert saved.steps() == [10, 20, 30]


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_file_is_found(three):
    reader = Checkpoints(three, read_only=True)
    files = [p for p in (three / "00000030").rglob("*") if p.is_file()]
    assert len(files) > 10
    for file in files:
        good = file.read_bytes()
        for where in (0.0, 0.37, 1.0):
            flip(file, where)
            with pytest.raises(DamagedCheckpointError, match=file.name):
                reader.verified(30)
        file.write_bytes(good)
    assert reader.verified(30)[0] == 30


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(data_file(folder, 30)),
        lambda folder: flip(data_file(folder, 30, "optimizer")),
        lambda folder: data_file(folder, 30).write_bytes(data_file(folder, 30).read_bytes()[:-1]),
        lambda folder: data_file(folder, 30).unlink(),
        lambda folder: shutil.rmtree(folder / "00000030/state"),
        lambda folder: flip(folder / "00000030/manifest.json"),
        lambda folder: (folder / "00000030/manifest.json").write_text("[]"),
        lambda folder: shutil.copy(folder / "00000020/manifest.json", folder / "00000030/manifest.json"),
        lambda folder: (folder / "00000030/manifest.json").unlink(),
    ],
    ids=["bit", "bit-optimizer", "truncated", "missing", "all-missing", "manifest", "json", "exchanged", "no-manifest"],
)
def test_a_damaged_checkpoint_is_moved_away_and_the_one_before_it_used(three, damage):
    damage(three)
    said = []
    with Checkpoints(three, say=said.append) as saved:
        step, state, _ = saved.restore(abstract())
        assert step == 20
        assert_equal(state, make_state(20))
        assert saved.steps() == [10, 20]
        (sentence,) = said
        assert "00000030" in sentence
        assert "damaged" in sentence
        assert (three / "damaged/00000030").is_dir()
        # Training goes on, and the same step is reached again.
        saved.save(30, make_state(30))
        assert saved.restore(abstract())[0] == 30


def test_a_reader_passes_over_damage_without_touching_it(three):
    flip(data_file(three, 30))
    said = []
    reader = Checkpoints(three, read_only=True, say=said.append)
    assert reader.restore(abstract())[0] == 20
    assert "is passed over" in said[0]
    assert reader.steps() == [10, 20, 30]
    with pytest.raises(DamagedCheckpointError, match="SHA-256"):
        reader.restore(abstract(), step=30)


def test_it_is_said_when_no_checkpoint_is_left(three, folder):
    with pytest.raises(NoCheckpointError, match=r"no checkpoint of step 5 \(there: 10, 20, 30\)"):
        Checkpoints(three, read_only=True).restore(abstract(), step=5)
    for step in (10, 20, 30):
        flip(data_file(three, step))
    with pytest.raises(NoCheckpointError, match="none of the 3 checkpoints"):
        Checkpoints(three).restore(abstract())
    with pytest.raises(NoCheckpointError, match="no complete checkpoint: all are damaged"):
        Checkpoints(three).restore(abstract())
    assert Checkpoints(three / "never-made").latest_step() is None


def test_unfinished_ones_are_ignored_and_removed_by_the_next_writer(three):
    for name in ("00000040.unfinished", "00000005.deleted"):
        shutil.copytree(three / "00000030", three / name)
    (three / "notes").mkdir()
    reader = Checkpoints(three, read_only=True)
    assert reader.restore(abstract())[0] == 30
    assert (three / "00000040.unfinished").exists()
    with Checkpoints(three) as saved:
        assert saved.restore(abstract())[0] == 30
    assert sorted(p.name for p in three.iterdir()) == ["00000010", "00000020", "00000030", "notes"]


def test_a_later_format_is_not_taken_for_damage(three, monkeypatch):
    with Checkpoints(three) as saved:
        monkeypatch.setattr(manifest, "_FORMAT", 2)
        saved.save(40, make_state(40))
        saved.wait()
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match="has checkpoint format 2"):
            saved.restore(abstract())
        assert saved.latest_step() == 40


def test_readers_work_while_checkpoints_are_rotated(folder):
    """A reader that finds its checkpoint gone takes a newer one, and never sees a half."""
    read = []
    with Checkpoints(folder, keep=1) as saved:
        saved.save(1, make_state(1))
        saved.wait()
        enough, deadline = threading.Event(), time.monotonic() + 30

        def write():
            step = 1
            while not enough.is_set():
                step += 1
                saved.save(step, make_state(step))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            while len(set(read)) < 8 and time.monotonic() < deadline:
                step, params, _ = Checkpoints(folder, read_only=True).restore_part("params")
                assert_equal(params, make_state(step)["params"])
                read.append(step)
        finally:
            enough.set()
            writer.join()
    assert len(set(read)) == 8
    assert read == sorted(read)


def test_a_checkpoint_is_not_rotated_away_while_it_is_read(folder, monkeypatch):
    """Orbax's threads outlive a read that fails halfway, so none may lose its files to the rotation."""
    real, there = module.read_part, []
    with Checkpoints(folder, keep=1) as saved:
        saved.save(1, make_state(1))
        saved.wait()

        def read_late(*args, **options):
            saved.save(2, make_state(2))
            saved.wait()
            there.append(saved.steps())
            return real(*args, **options)

        monkeypatch.setattr(module, "read_part", read_late)
        step, params, _ = Checkpoints(folder, read_only=True).restore_part("params")
        assert (step, there) == (1, [[1, 2]])
        assert_equal(params, make_state(1)["params"])
        saved.save(3, make_state(3))
        saved.wait()
        assert saved.steps() == [3]


def test_a_checkpoint_that_is_being_removed_is_not_read(three):
    with held_folder(three / "00000030", alone=True) as free:
        assert free
        with pytest.raises(CheckpointError, match="replaced faster than they can be read"):
            Checkpoints(three, read_only=True).restore_part("params")
    assert Checkpoints(three, read_only=True).restore_part("params")[0] == 30


def test_a_checkpoint_that_vanishes_between_verifying_and_reading_is_read_again(three, monkeypatch):
    real, calls = module.read_part, []

    def vanish(folder, *args, **options):
        calls.append(folder)
        if len(calls) == 1:
            shutil.rmtree(three / "00000030")
        return real(folder, *args, **options)

    monkeypatch.setattr(module, "read_part", vanish)
    assert Checkpoints(three, read_only=True).restore_part("params")[0] == 20
    assert len(calls) == 2


# -- disk space -------------------------------------------------------------------------------------------------------


def test_the_space_that_is_needed_is_what_a_checkpoint_takes_at_most(folder):
    state = {
        "params": {f"{i}": jax.random.normal(jax.random.key(i), (500, 100)) for i in range(10)},
        "step": jnp.int32(1),
    }
    with Checkpoints(folder) as saved:
        needed = bytes_needed(state)
        assert needed == bytes_needed(jax.eval_shape(lambda: state))
        saved.save(1, state)
        saved.wait()
        taken = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert taken <= needed <= 1.15 * 10 * 500 * 100 * 4


def test_a_full_disk_is_told_beforehand(three, monkeypatch):
    usage = shutil.disk_usage(three)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    big = {"params": jax.ShapeDtypeStruct((100_000,), jnp.float32)}
    with Checkpoints(three) as saved:
        with pytest.raises(DiskFullError, match=r"a checkpoint needs 4..\.. kB, but the disk of .* has 300\.0 kB free"):
            saved.check_space(big)
        with pytest.raises(DiskFullError, match=r"4 checkpoints need 1\.. MB"):
            saved.check_space(big, count=4)
        with pytest.raises(DiskFullError, match="a checkpoint needs"):
            saved.save(40, make_state(40))
        assert saved.steps() == [10, 20, 30]
        assert len(list(three.iterdir())) == 3
        assert saved.restore(abstract())[0] == 30


@pytest.mark.parametrize("place", ["manifest", "arrays", "start"])
def test_a_disk_that_fills_up_while_saving_leaves_the_earlier_ones(three, monkeypatch, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpoints(three) as saved:
        if place == "manifest":
            monkeypatch.setattr(manifest, "write_atomic", full)
        else:
            monkeypatch.setattr(saved._writer, {"arrays": "finish", "start": "start"}[place], full)

        def save_and_wait(step):
            saved.save(step, make_state(step))
            saved.wait()

        with pytest.raises(DiskFullError, match=r"step 40 was not saved: the disk of .* is full"):
            save_and_wait(40)
        monkeypatch.undo()
        assert len(list(three.iterdir())) == 3
        assert saved.restore(abstract())[0] == 30
        save_and_wait(41)
        assert saved.steps() == [20, 30, 41]
