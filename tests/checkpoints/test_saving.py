"""A run's own checkpoints: bit-exact, verified, and safe from a kill at any moment."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_helpers import array_files, cut, flip, flip_arrays, make_state
from clean_environment import xla_flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from promot_t5x.checkpoints import checksums, hashing, manifest, restoring
from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.checkpoints.steps import LOSS, best_step, complete_steps
from promot_t5x.errors import NonFiniteError, SaveError, UserError

pytestmark = pytest.mark.slow

INFO = {"base_path": "/bases/t5", "base_hash": "ab12", "seed": 3}


def abstract(tree):
    def one(x):
        sharding = x.sharding if isinstance(x, jax.Array) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def raw(tree):
    return jax.tree.map(lambda x: (str(x.dtype), x.shape, np.asarray(x).tobytes()), tree)


def save(directory, *steps, **options):
    with Checkpoints(directory, **{"keep": None, **options}) as saver:
        for step in steps:
            trainable, opt_state = make_state(step)
            assert saver.save(step, trainable=trainable, opt_state=opt_state, metadata=INFO)


def load(directory, **options):
    trainable, opt_state = make_state()
    return restoring.restore(
        directory, trainable=abstract(trainable), opt_state=abstract(opt_state), **options
    )


def test_round_trip_is_bit_exact(tmp_path):
    trainable, opt_state = make_state(5)
    trainable["odd"] = jnp.array([3e38, -0.0, -1.5, 1e-45], jnp.float32)
    with Checkpoints(tmp_path) as saver:
        saver.save(5, trainable=trainable, opt_state=opt_state, metadata=INFO)
        found = saver.restore(trainable=abstract(trainable), opt_state=abstract(opt_state))
    assert (found.step, found.metadata, found.warnings) == (5, INFO, ())
    assert raw(found.trainable) == raw(trainable)
    assert raw(found.opt_state) == raw(opt_state)
    assert jax.tree.structure(found.opt_state) == jax.tree.structure(opt_state)


@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(1e-3), optax.adafactor(1e-3), optax.sgd(0.1)],
    ids=["adam", "adafactor", "sgd"],
)
def test_optax_states_round_trip(tmp_path, optimizer):
    params = {"a": jnp.ones((4, 4)), "b": {"c": jnp.ones(3)}}
    opt_state = optimizer.init(params)
    with Checkpoints(tmp_path) as saver:
        saver.save(1, trainable=params, opt_state=opt_state, metadata={})
        found = saver.restore(trainable=abstract(params), opt_state=abstract(opt_state))
    assert raw(found.opt_state) == raw(opt_state)


def test_restores_onto_another_sharding(tmp_path):
    devices = np.array(jax.devices())
    rows = NamedSharding(Mesh(devices, ("data",)), P("data"))
    grid = NamedSharding(Mesh(devices.reshape(4, 2), ("x", "y")), P("y", "x"))
    trainable, opt_state = make_state(2, rows)
    with Checkpoints(tmp_path) as saver:
        saver.save(2, trainable=trainable, opt_state=opt_state, metadata={})
    wanted, _ = make_state(0, grid)
    found = restoring.restore(tmp_path, trainable=abstract(wanted), opt_state=abstract(opt_state))
    kernel = found.trainable["decoder"]["kernel"]
    assert kernel.sharding == grid
    assert kernel.addressable_shards[0].data.shape == (8, 2)
    assert raw(found.trainable) == raw(trainable)
    assert found.opt_state.v["kernel"].sharding == rows


def test_arrays_may_be_donated_or_changed_at_once(tmp_path):
    kernel, before = jnp.arange(2**18, dtype=jnp.float32), np.arange(2**18, dtype=np.float32)
    host = before.copy()
    with Checkpoints(tmp_path) as saver:
        saver.save(1, trainable={"k": kernel, "n": host}, opt_state=(), metadata={})
        host[:] = -1
        jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(kernel).block_until_ready()
    found = restoring.restore(tmp_path, trainable={"k": before, "n": before})
    np.testing.assert_array_equal(found.trainable["k"], before)
    np.testing.assert_array_equal(found.trainable["n"], before)


def test_reading_only_what_trains(tmp_path):
    save(tmp_path, 1)
    trainable, _ = make_state(1)
    found = restoring.restore(tmp_path, trainable=jax.tree.map(np.asarray, trainable))
    assert found.opt_state is None
    assert isinstance(found.trainable["decoder"]["kernel"], np.ndarray)
    assert raw(found.trainable) == raw(trainable)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sharded", [False, True])
def test_numbers_that_are_not_finite_are_not_saved(tmp_path, number, sharded):
    save(tmp_path, 1)
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
    trainable, opt_state = make_state(2, rows if sharded else None)
    trainable["decoder"]["kernel"] = trainable["decoder"]["kernel"].at[15, 7].set(number)
    trainable["encoder"]["scale"] = trainable["encoder"]["scale"].at[0].set(number)
    opt_state.v["kernel"] = np.full((16, 8), number, np.float32)
    with Checkpoints(tmp_path, keep=None) as saver:
        with pytest.raises(
            NonFiniteError, match="Step 2 is not saved.* 3 of its 7 arrays"
        ) as error:
            saver.save(2, trainable=trainable, opt_state=opt_state, metadata={})
        assert set(error.value.arrays) == {
            "target/decoder/kernel",
            "target/encoder/scale",
            "state/opt_state/v/kernel",
        }
        assert saver.latest() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_1"]


def test_a_checkpoint_that_holds_such_numbers_already_is_passed_over(tmp_path, monkeypatch):
    """As versions before the check have saved them."""
    save(tmp_path, 1)
    monkeypatch.setattr("promot_t5x.checkpoints.saving.non_finite_state", lambda leaves: [])
    trainable, opt_state = make_state(2)
    opt_state.v["kernel"] = np.full((16, 8), np.nan, np.float32)
    with Checkpoints(tmp_path, keep=None) as saver:
        saver.save(2, trainable=trainable, opt_state=opt_state, metadata=INFO)
    found = load(tmp_path)
    assert found.step == 1
    assert "not finite in state/opt_state/v/kernel" in found.warnings[0]
    with pytest.raises(UserError, match="No valid checkpoint.*not finite"):
        load(tmp_path, step=2)


def test_a_scalar_of_the_optimizer_may_be_infinite_but_not_nan(tmp_path):
    params = {"a": jnp.ones(3)}
    opt_state = optax.contrib.reduce_on_plateau().init(params)
    assert np.isinf(opt_state.best_value)
    with Checkpoints(tmp_path, keep=None) as saver:
        saver.save(1, trainable=params, opt_state=opt_state, metadata={})
        assert saver.steps() == [1]
        opt_state = opt_state._replace(best_value=jnp.float32(np.nan))
        with pytest.raises(NonFiniteError, match="opt_state/best_value"):
            saver.save(2, trainable=params, opt_state=opt_state, metadata={})


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path / "new") as saver:
        assert saver.latest() is None
        assert saver.best("accuracy") is None
        assert saver.restore(trainable={"a": np.ones(1)}) is None
    with pytest.raises(UserError, match=r"no checkpoint of step 4; it has \[\]"):
        load(tmp_path, step=4)


def test_saving_a_step_twice_leaves_the_first(tmp_path):
    save(tmp_path, 1)
    trainable, opt_state = make_state(9)
    with Checkpoints(tmp_path) as saver:
        assert not saver.save(1, trainable=trainable, opt_state=opt_state, metadata={})
    assert raw(load(tmp_path).trainable) == raw(make_state(1)[0])


@pytest.mark.parametrize("harm", [cut, lambda path: path.unlink()], ids=["cut", "gone"])
def test_cut_or_missing_file_is_named_and_passed_over(tmp_path, harm, caplog):
    save(tmp_path, 10, 20)
    file = array_files(tmp_path / "checkpoint_20")[0]
    harm(file)
    with caplog.at_level(logging.WARNING, "promot_t5x"):
        found = load(tmp_path)
    assert found.step == 10
    assert raw(found.trainable) == raw(make_state(10)[0])
    (warning,) = found.warnings
    assert str(file) in warning
    assert warning in caplog.text
    assert complete_steps(tmp_path) == [10]


def test_flipped_bit_is_passed_over(tmp_path):
    save(tmp_path, 10, 20)
    flip_arrays(tmp_path / "checkpoint_20")
    found = load(tmp_path)
    assert found.step == 10
    (warning,) = found.warnings
    assert "checkpoint_20" in warning
    assert "checksum" in warning or "cannot be read" in warning


def test_every_flipped_byte_of_the_arrays_is_found(tmp_path):
    """No data file of a checkpoint may change without being noticed, or changing nothing."""
    save(tmp_path, 1)
    sound = raw(make_state(1))
    found = 0
    for file in array_files(tmp_path / "checkpoint_1"):
        data = file.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 6)):
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            try:
                restored = load(tmp_path)
                assert raw((restored.trainable, restored.opt_state)) == sound
            except UserError:
                found += 1
        file.write_bytes(data)
    assert found > 5
    assert load(tmp_path).step == 1


def test_wrong_bytes_name_the_array(tmp_path):
    save(tmp_path, 10, 20)
    rewrite(
        tmp_path / "checkpoint_20" / "manifest.json",
        lambda body: body["arrays"]["target/decoder/kernel"]["blocks"][0].__setitem__(2, "0" * 32),
    )
    found = load(tmp_path)
    assert found.step == 10
    assert "wrong checksum of target/decoder/kernel" in found.warnings[0]
    assert load(tmp_path, verify=False).step == 20


@pytest.mark.parametrize(
    "harm", [flip, cut, lambda path: path.unlink()], ids=["flip", "cut", "gone"]
)
def test_damaged_manifest_is_passed_over_and_replaced(tmp_path, harm):
    save(tmp_path, 10, 20)
    harm(tmp_path / "checkpoint_20" / "manifest.json")
    trainable, opt_state = make_state(20)
    with Checkpoints(tmp_path, keep=None) as saver:
        assert saver.latest() == 10
        found = saver.restore(trainable=abstract(trainable), opt_state=abstract(opt_state))
        assert found.step == 10
        assert "manifest.json" in found.warnings[0]
        assert saver.save(20, trainable=trainable, opt_state=opt_state, metadata={})
        assert saver.latest() == 20
    assert load(tmp_path).warnings == ()


def test_step_found_damaged_no_longer_counts_and_is_replaced(tmp_path):
    save(tmp_path, 10, 20)
    flip_arrays(tmp_path / "checkpoint_20")
    trainable, opt_state = make_state(20)
    with Checkpoints(tmp_path, keep=1) as saver:
        assert (
            saver.restore(trainable=abstract(trainable), opt_state=abstract(opt_state)).step == 10
        )
        assert saver.latest() == 10
        assert saver.save(20, trainable=trainable, opt_state=opt_state, metadata={})
        assert saver.steps() == [20]
    assert raw(load(tmp_path).trainable) == raw(trainable)


def rewrite(path, change):
    """Change the JSON of a manifest, and its checksum with it."""
    body = json.loads(path.read_text())
    del body["checksum"]
    change(body)
    path.write_text(json.dumps({**body, "checksum": manifest.checksum_of(body)}))


def lose_all_but_the_tree(step_dir):
    for name in ("manifest.ocdbt", "d"):
        path = step_dir / "state" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def as_if_saved_in_float64(step_dir):
    """What the manifest says is float32 turns out to be stored as something else."""

    def change(body):
        body["arrays"]["target/decoder/kernel"]["dtype"] = "float64"

    rewrite(step_dir / "manifest.json", change)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (flip_arrays, "target/decoder/kernel"),
        (lambda d: [cut(f) for f in array_files(d)], "target/decoder/kernel cannot be read: "),
        (lambda d: [f.unlink() for f in array_files(d)], "target/decoder/kernel cannot be read: "),
        (lose_all_but_the_tree, "target/decoder/kernel cannot be read"),
        (lambda d: flip(d / "manifest.json"), "manifest.json is damaged"),
        (lambda d: (d / "manifest.json").write_text("[]"), "manifest.json is damaged"),
        (lambda d: (d / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda d: shutil.rmtree(d / "state"), "target/decoder/kernel"),
    ],
    ids=[
        "flipped",
        "cut",
        "no_files",
        "no_commit",
        "flipped_manifest",
        "garbled_manifest",
        "no_manifest",
        "no_state",
    ],
)
def test_every_kind_of_damage_is_named_and_passed_over(tmp_path, harm, named):
    save(tmp_path, 10, 20)
    harm(tmp_path / "checkpoint_20")
    found = load(tmp_path)
    assert found.step == 10
    assert raw(found.trainable) == raw(make_state(10)[0])
    (warning,) = found.warnings
    assert named in warning


def test_arrays_of_another_dtype_than_recorded_are_damage(tmp_path):
    save(tmp_path, 1)
    as_if_saved_in_float64(tmp_path / "checkpoint_1")
    trainable, _ = make_state()
    wanted = abstract(trainable)
    wanted["decoder"]["kernel"] = jax.ShapeDtypeStruct((16, 8), np.float64)
    with pytest.raises(UserError, match=r"kernel is float32\[16, 8\], not float64\[16, 8\]"):
        restoring.restore(tmp_path, trainable=wanted)


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    save(tmp_path, 10, 20)
    for step in (10, 20):
        cut(array_files(tmp_path / f"checkpoint_{step}")[0])
    with pytest.raises(UserError, match="No valid checkpoint.*checkpoint_20.*checkpoint_10"):
        load(tmp_path)
    with pytest.raises(UserError, match="No valid checkpoint.*checkpoint_10"):
        load(tmp_path, step=10)


def test_other_arrays_than_this_runs_are_an_error(tmp_path):
    save(tmp_path, 1)
    trainable, opt_state = make_state()
    trainable["decoder"]["kernel"] = np.zeros((16, 9), np.float32)
    trainable["encoder"]["scale"] = np.zeros(8, np.float32)
    trainable["more"] = np.zeros(2)
    with pytest.raises(UserError) as error:
        restoring.restore(tmp_path, trainable=trainable, opt_state=opt_state)
    assert "target/more is not in the checkpoint" in str(error.value)
    assert "kernel is float32[16, 8] in the checkpoint, float32[16, 9]" in str(error.value)
    assert "scale is bfloat16[8] in the checkpoint, float32[8]" in str(error.value)
    with pytest.raises(UserError, match="opt_state/v/kernel is not in this run"):
        restoring.restore(tmp_path, trainable=make_state()[0], opt_state=opt_state._replace(v={}))


def test_leaves_must_be_arrays(tmp_path):
    with Checkpoints(tmp_path) as saver:
        with pytest.raises(TypeError, match="opt_state/0 is a int"):
            saver.save(1, trainable={"a": jnp.ones(2)}, opt_state=(1,), metadata={})
        with pytest.raises(ValueError, match="may not hold"):
            saver.save(1, trainable={"a.b": jnp.ones(2)}, opt_state=(), metadata={})
        assert saver.latest() is None


@pytest.mark.parametrize(("mode", "kept"), [("max", [2, 5, 6]), ("min", [1, 5, 6])])
def test_retention_keeps_the_newest_and_the_best(tmp_path, mode, kept):
    scores = {1: 0.1, 2: 0.9, 3: 0.9, 4: float("nan"), 5: 0.5, 6: 0.4}
    with Checkpoints(tmp_path, keep=2, best_metric="acc", best_mode=mode) as saver:
        for step, score in scores.items():
            trainable, opt_state = make_state(step)
            metadata = {"metrics": {"acc": score}}
            saver.save(step, trainable=trainable, opt_state=opt_state, metadata=metadata)
        assert saver.steps() == kept
        assert saver.best() == kept[0]
        assert saver.metrics(5) == {"acc": 0.5}
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint_{s}" for s in kept]


def test_what_a_killed_run_would_have_removed_next_goes_when_it_resumes(tmp_path):
    save(tmp_path, 1, 2, 3)  # killed before each removal
    trainable, opt_state = make_state()
    with Checkpoints(tmp_path, keep=1) as saver:
        assert saver.steps() == [1, 2, 3]  # nothing before the newest has been read
        found = saver.restore(trainable=abstract(trainable), opt_state=abstract(opt_state))
        assert (found.step, saver.steps()) == (3, [3])


def test_retention_keeps_periods_and_pinned_steps(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_period=4) as saver:
        for step in range(1, 11):
            trainable, opt_state = make_state(step)
            saver.save(step, trainable=trainable, opt_state=opt_state, metadata={})
            saver.wait()
            if step == 3:
                (tmp_path / "checkpoint_3" / "PINNED").touch()
        assert saver.steps() == [3, 4, 8, 10]
    with pytest.raises(UserError, match="keep_period = 0"):
        Checkpoints(tmp_path, keep_period=0)


def test_a_temporary_step_goes_with_the_next_one_and_displaces_none(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_period=3) as saver:
        kept = {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [2, 4]}
        for step, steps in kept.items():
            trainable, opt_state = make_state(step)
            arrays = {"trainable": trainable, "opt_state": opt_state}
            saver.save(step, **arrays, metadata={}, temporary=step == 3)
            assert saver.steps() == steps


def test_a_step_counts_only_once_its_arrays_have_been_read_again(tmp_path, monkeypatch):
    save(tmp_path, 1)
    inner = checksums.find_damage

    def after_a_bit_rotted(state, records):
        flip_arrays(Path(state.parent))
        return inner(state, records)

    monkeypatch.setattr("promot_t5x.checkpoints.saving.find_damage", after_a_bit_rotted)
    trainable, opt_state = make_state(2)
    with pytest.raises(SaveError, match="Saving step 2 .*cannot be read"):
        with Checkpoints(tmp_path, keep=None) as saver:
            saver.save(2, trainable=trainable, opt_state=opt_state, metadata={})
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint_1", "pending_2"}
    (tmp_path / "checkpoint_2.orbax-checkpoint-tmp").mkdir()  # by a thread of Orbax's, after that
    with Checkpoints(tmp_path, keep=None) as saver:
        assert saver.steps() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_1"]


def test_metrics_can_be_added_later(tmp_path):
    save(tmp_path, 1, 2, 3)
    with Checkpoints(tmp_path, keep=1, best_metric="f1") as saver:
        saver.add_metrics(3, {"f1": 1})
        assert saver.steps() == [3]
        with pytest.raises(ValueError, match="step 1"):
            saver.add_metrics(1, {"f1": 2})
        saver.add_metrics(3, {"loss": 0.5})
        assert saver.metrics(3) == {"f1": 1.0, "loss": 0.5}


@pytest.mark.parametrize(
    ("ties", "best"), [("earliest", 2), ("latest", 4), ("loss", 3), ("loss without", 2)]
)
def test_of_equal_scores_the_loss_or_the_order_decides(tmp_path, ties, best):
    """Steps 2 to 4 have the best score; step 3 has the least loss of them, step 1 of all."""
    save(tmp_path, 1, 2, 3, 4, keep=None)
    losses = {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.7}
    with Checkpoints(tmp_path, keep=None) as saver:
        for step, loss in losses.items():
            scores = {"score": 10.0 if step == 1 else 20.0}
            if ties != "loss without":
                scores[LOSS] = loss
            saver.add_metrics(step, scores)
    ties = ties.partition(" ")[0]
    assert best_step(tmp_path, [1, 2, 3, 4], "score", ties=ties) == best


def test_other_programs_checkpoints_are_never_removed(tmp_path):
    other = tmp_path / "checkpoint_1" / "state"
    other.mkdir(parents=True)
    (other / "_METADATA").write_text("{}")
    save(tmp_path, 1, 2, 3, keep=1)
    assert (tmp_path / "set_aside_checkpoint_1.0" / "state" / "_METADATA").read_text() == "{}"
    assert complete_steps(tmp_path) == [3]


def test_leavings_are_removed_and_ignored(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "pending_2").mkdir()
    (tmp_path / "checkpoint_2" / "manifest.json").unlink()
    (tmp_path / "pending_3").mkdir()
    (tmp_path / "checkpoint_3.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "pending_1").mkdir()
    assert complete_steps(tmp_path) == [1]
    with Checkpoints(tmp_path) as saver:
        assert saver.latest() == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_1"]


def test_failed_save_is_raised_by_the_next_call(tmp_path):
    trainable, opt_state = make_state()
    saver = Checkpoints(tmp_path)
    saver.save(1, trainable=trainable, opt_state=opt_state, metadata={})
    saver.wait()

    def fail(directory, manifest):
        raise OSError("disk full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("promot_t5x.checkpoints.saving.write_manifest", fail)
        saver.save(2, trainable=trainable, opt_state=opt_state, metadata={})
        with pytest.raises(SaveError, match="step 2 .*disk full"):
            saver.save(3, trainable=trainable, opt_state=opt_state, metadata={})
    assert saver.latest() == 1
    saver.close()
    with Checkpoints(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_1"]


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 1)
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
    trainable, opt_state = make_state(2)
    with Checkpoints(tmp_path, keep=None) as saver:
        with pytest.raises(SaveError, match="Step 2 needs 1,0.. bytes .* 1,000 left"):
            saver.save(2, trainable=trainable, opt_state=opt_state, metadata={})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_1"]


def test_saving_does_not_wait_for_the_write(tmp_path, monkeypatch):
    trainable, opt_state = make_state()
    finish = Checkpoints._finish

    saved, waited_for = threading.Event(), []

    def finish_once_saved(self, *args):
        waited_for.append(saved.wait(60))
        finish(self, *args)

    monkeypatch.setattr(Checkpoints, "_finish", finish_once_saved)
    with Checkpoints(tmp_path) as saver:
        saver.save(1, trainable=trainable, opt_state=opt_state, metadata={})
        assert complete_steps(tmp_path) == []
        saved.set()
        saver.wait()
        assert waited_for == [True]
        assert complete_steps(tmp_path) == [1]


def test_prompt_stage_writes_only_its_prompt(tmp_path):
    prompt = {"encoder": {"prompt": {"prompt": jnp.ones((1, 100, 512))}}}
    with Checkpoints(tmp_path) as saver:
        opt_state = optax.adafactor(0.3).init(prompt)
        saver.save(1, trainable=prompt, opt_state=opt_state, metadata=INFO)
    size = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert size < 3 * 100 * 512 * 4
    names = json.loads((tmp_path / "checkpoint_1" / "manifest.json").read_text())["arrays"]
    assert [n for n in names if n.startswith("target/")] == ["target/encoder/prompt/prompt"]


def test_manifest_digest_is_the_content_hashs(tmp_path):
    save(tmp_path, 1)
    body = json.loads((tmp_path / "checkpoint_1" / "manifest.json").read_text())
    kernel = np.asarray(make_state(1)[0]["decoder"]["kernel"])
    assert body["arrays"]["target/decoder/kernel"]["blocks"] == [
        [[0, 0], [16, 8], hashing.digest(kernel)]
    ]


def test_saving_and_restoring_say_nothing(tmp_path, capfd):
    save(tmp_path, 1)
    load(tmp_path)
    assert capfd.readouterr() == ("", "")


KILLED = """
# Forks before JAX starts, so that a trial costs no imports; each trial trains on from what is
# there and is killed: at a random moment, or on entering a function for the second time.
import json, os, random, signal, sys, time
import numpy as np
import jax, jax.numpy as jnp
from promot_t5x.checkpoints import saving
from promot_t5x.checkpoints.saving import Checkpoints

PLACES = [(saving, "record_arrays"), (Checkpoints, "_complete"), (saving, "write_manifest"),
          (Checkpoints, "_retain"), (Checkpoints, "_remove"), (saving, "file_sizes")]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def train(out, place):
    if place:
        owner, name = place
        inner, calls = getattr(owner, name), []
        def deadly(*args):
            calls.append(1)
            return die() if len(calls) == 2 else inner(*args)
        setattr(owner, name, deadly)
    with Checkpoints(sys.argv[1], keep=1) as saver:
        like = {"a": np.zeros((64, 1024), np.float32), "b": np.zeros(8, np.int32)}
        found = saver.restore(trainable=like)
        step = found.step if found else 0
        sound = not found or all((x == step).all() for x in found.trainable.values())
        out.write(json.dumps([step, sound, found.warnings if found else []]) + "\\n")
        while True:
            step += 1
            a = jnp.full((64, 1024), step, jnp.float32)
            saver.save(step, trainable={"a": a, "b": jnp.full(8, step)}, opt_state=(), metadata={})
            saver.wait()
            out.write(f"{step}\\n")

for trial in range(int(sys.argv[2])):
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        with open(write, "w", buffering=1) as out:
            train(out, PLACES[trial] if trial < len(PLACES) else None)
    os.close(write)
    with open(read) as lines:
        report = [lines.readline()]
        if trial >= len(PLACES):
            time.sleep(0.4 * random.random())
            os.kill(pid, signal.SIGKILL)
        report += lines.readlines()
    os.waitpid(pid, 0)
    print(json.dumps([json.loads(line) for line in report]), flush=True)
"""


def test_kill_at_any_moment_loses_at_most_the_save_under_way(tmp_path):
    """SIGKILL within each part of a save and at random; every restart goes on where it should."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "8"],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": xla_flags()},
    )
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == 8
    reached = 0
    for (start, sound, warnings), *saved in trials:
        assert sound
        assert not warnings
        assert reached <= start <= reached + 1
        assert saved == list(range(start + 1, start + 1 + len(saved)))
        reached = saved[-1] if saved else start
    assert reached > 3
    assert complete_steps(tmp_path)[-1] >= reached
