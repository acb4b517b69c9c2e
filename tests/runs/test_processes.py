"""Runs of several real processes: what they compute is what one computes, whoever is killed.

A two-stage run with evaluation and comparison in two processes, of which one is killed in between
with SIGKILL; a stage in four, whose model is split across processes. Each is compared with a run of
one process.
"""

import signal
import time
from pathlib import Path

import fork_helpers
import numpy as np
import pytest
import run_helpers
from clean_environment import xla_flags
from engine_helpers import model_of, random_params
from flax import serialization

from promot_t5x import errors
from promot_t5x.checkpoints.steps import complete_steps
from promot_t5x.network.config import T5Config

pytestmark = pytest.mark.slow

STEPS, PERIOD = 6, 2
# A stage without validation; the settings of one are then unused.
UNASKED = """\
from __gin__ import dynamic_registration
from promot_t5x.runs import stages
stages.Stage.evaluation = None
"""
SLOWEST_SEC = 300.0
END_SEC = 60.0  # in which a process follows one that was killed


class Processes:
    """The processes that were started last."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._started: list[fork_helpers.Process] = []

    def start(
        self,
        words: list[str],
        count: int,
        *,
        apart: bool = False,
        full: int | None = None,
        limit: int = 40_000,
    ) -> None:
        """Start processes that run one command line together, or each in a directory of its own.

        To the process whose index is `full`, a file may not be longer than `limit`.
        """
        own = [f"--coordinator_address=localhost:{free_port()}", f"--process_count={count}"]
        self._started = []
        for index in range(count):
            home = self._directory / (f"host_{index}" if apart else "")
            home.mkdir(exist_ok=True)
            command = [*words, *own, f"--process_index={index}"]
            self._started.append(
                fork_helpers.shared().start(
                    command,
                    cwd=home,
                    environ={"XLA_FLAGS": xla_flags(optimized=False)},
                    file_limit=limit if index == full else None,
                )
            )

    def wait(self) -> list[int]:
        """The exit statuses of the processes, once all have ended."""
        return [process.wait().status for process in self._started]

    def said(self, index: int) -> str:
        """What a process of the last start has printed."""
        return self._started[index].said

    def kill_when(
        self, index: int, sign: Path, number: int = signal.SIGKILL
    ) -> tuple[float, list[int]]:
        """Signal one when a file is there; how long the others went on, and all statuses."""
        end = time.monotonic() + SLOWEST_SEC
        while not sign.exists() and time.monotonic() < end:
            time.sleep(0.005)
        assert sign.exists(), self.said(0)
        self._started[index].kill(number)
        killed = time.monotonic()
        statuses = self.wait()
        return time.monotonic() - killed, statuses


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = run_helpers.Lab(tmp_path_factory.mktemp("processes"))
    lab.write("two_stages.gin", run_helpers.TWO_STAGES)
    lab.write("unasked.gin", UNASKED)
    return lab


@pytest.fixture(scope="module")
def processes(lab):
    return Processes(lab.directory)


@pytest.fixture(scope="module")
def base(lab):
    """A checkpoint of random weights, which costs no process a compilation."""
    config = T5Config(
        vocab_size=384,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_activations=("gelu", "linear"),
        logits_via_embedding=True,
    )
    state = {"target": random_params(model_of(config)), "state": {"step": 0, "param_states": {}}}
    directory = lab.directory / "checkpoint_0"
    directory.mkdir()
    contents = serialization.msgpack_serialize({"version": 3, "optimizer": state})
    (directory / "checkpoint").write_bytes(contents)
    return directory


@pytest.fixture(scope="module")
def killed(lab, processes, base):
    """A run of one process, the same in two that were killed on the way, what those said then."""

    def words(name):
        stages = {"TRAIN_STEPS": STEPS, "EVAL_PERIOD": PERIOD}
        prompt = {"PROMPT_STEPS": STEPS, "PROMPT_EVAL_PERIOD": PERIOD}
        where = {"MODEL_DIR": lab.directory / name, "INITIAL_CHECKPOINT_PATH": base}
        settings = {**where, **stages, **prompt, "DROPOUT_RATE": 0.1}
        return lab.words("promot", "promot", "prompt", "two_stages.gin", **settings)

    processes.start(words("one"), 1)
    assert processes.wait() == [0], processes.said(0)
    two = lab.directory / "two"
    processes.start(words("two"), 2)
    took, statuses = processes.kill_when(1, two / f"stage_two/checkpoint_{PERIOD}/manifest.json")
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] != 0
    assert took < END_SEC
    assert not (two / "stage_two" / "stage.json").exists()
    said = [processes.said(index) for index in (0, 1)]
    processes.start(words("two"), 2)
    assert processes.wait() == [0, 0], processes.said(0) + processes.said(1)
    assert "[stage_two] resumes after step" in processes.said(0)
    assert "stage_two" not in processes.said(1)  # process 0 speaks for all
    return lab.directory / "one", two, said


def test_a_process_that_is_killed_takes_the_others_with_it_and_all_say_where(killed):
    survivor, victim = killed[2]
    assert "process 1 of 2 was ended at [stage_two] " in victim
    assert "process 0 of 2 failed at [stage_two] " in survivor or (
        "process 0 of 2 was ended at [stage_two] " in survivor
        and "Fatal Python error: Aborted" in survivor  # with its stacks
    ), survivor
    assert "start it again to resume from what is saved" in survivor


def test_two_processes_lose_and_learn_what_one_does(killed):
    one, two, _ = killed
    for stage in ("stage_one", "stage_two"):
        same_training(one / stage, two / stage, STEPS)
    assert (one / "report.md").read_text() == (two / "report.md").read_text()


def test_two_processes_answer_what_one_does(killed):
    one, two, _ = killed
    names = {path.relative_to(one) for path in one.rglob("inference_eval/*.jsonl")}
    assert names == {path.relative_to(two) for path in two.rglob("inference_eval/*.jsonl")}
    assert len(names) >= 2 * (STEPS // PERIOD) + 2
    for name in names:
        rows = [run_helpers.json_lines(directory / name) for directory in (one, two)]
        assert len(rows[0]) == len(rows[1]) > 0, name
        for wanted, found in zip(*rows, strict=True):
            same_but_for_rounding(found, wanted)


def test_four_processes_that_share_copies_of_the_model(lab, processes, base):
    """Two parts of the model by two of the batch, a device a process: pairs read the same rows.

    Batches are packed, in rows that both halves of a batch can share.
    """
    names = {1: "one_of_four", 4: "four"}
    for count, name in names.items():
        settings = {"NUM_PARTITIONS": min(count, 2), "TRAIN_STEPS": 4, "EVAL_PERIOD": 2}
        lengths = {"inputs": 32, "targets": 6}
        settings |= {
            "PACK": "batch",
            "TASK_FEATURE_LENGTHS": lengths,
            "MICROBATCHES": 2 if count == 1 else 1,
        }
        where = {"MODEL_DIR": lab.directory / name, "INITIAL_CHECKPOINT_PATH": base}
        words = lab.words("train", "finetune", "train", "unasked.gin", **settings, **where)
        processes.start(words, count)
        assert processes.wait() == [0] * count, "".join(map(processes.said, range(count)))
    same_training(lab.directory / "one_of_four", lab.directory / "four", 4)


def test_hosts_that_do_not_share_the_directory_are_told(lab, processes, base):
    where = {"MODEL_DIR": "run", "INITIAL_CHECKPOINT_PATH": base}
    processes.start(lab.words("train", "finetune", "train", **where), 2, apart=True)
    assert processes.wait() == [2, 2], processes.said(0) + processes.said(1)
    assert "MODEL_DIR is not shared by all hosts: process 0 wrote run/config.gin" in (
        processes.said(1)
    )


@pytest.mark.parametrize(("full", "limit"), [(0, 40_000), (1, 10_000), (1, 40)])
def test_a_save_that_fails_in_one_ends_all_at_once(lab, processes, base, full, limit):
    """Orbax alone would wait ten minutes for the process that does not write."""
    directory = lab.directory / f"full_{full}_{limit}"
    settings = {"NUM_PARTITIONS": 2, "TRAIN_STEPS": 2, "EVAL_PERIOD": 2}
    where = {"MODEL_DIR": directory, "INITIAL_CHECKPOINT_PATH": base}
    words = lab.words("train", "finetune", "train", "unasked.gin", **settings, **where)
    began = time.monotonic()
    processes.start(words, 2, full=full, limit=limit)
    statuses = processes.wait()
    said = processes.said(0) + processes.said(1)
    assert time.monotonic() - began < SLOWEST_SEC
    assert statuses[full] == errors.EXIT_NOT_SAVED, said
    assert f"Saving step 2 in {directory} failed: " in processes.said(full)
    assert "File too large" in processes.said(full)
    assert complete_steps(directory) == []
    if limit == 40:  # there is not even room to tell the other one, which sees that it is gone
        assert statuses[1 - full] not in (0, errors.EXIT_USER_ERROR), said
        return
    assert statuses[1 - full] == errors.EXIT_NOT_SAVED, said
    assert f"a save in {directory} failed elsewhere: " in processes.said(1 - full)
    if full:  # what the first one leaves is what has to be cleaned
        return
    processes.start(words, 2)
    assert processes.wait() == [0, 0], processes.said(0) + processes.said(1)
    assert complete_steps(directory) == [2]
    assert not list(directory.glob("pending_*"))


def test_sigterm_to_one_saves_the_same_step_in_all(lab, processes, base):
    """The model is split over both, so the checkpoint is whole only if both saved that step."""
    directory = lab.directory / "preempted"
    settings = {"NUM_PARTITIONS": 2, "TRAIN_STEPS": 100_000, "EVAL_PERIOD": 100_000}
    where = {"MODEL_DIR": directory, "INITIAL_CHECKPOINT_PATH": base}
    words = lab.words("train", "finetune", "train", "unasked.gin", **settings, **where)
    reached = 0
    for _ in range(2):
        processes.start(words, 2)
        end = time.monotonic() + SLOWEST_SEC
        while "step compiled" not in processes.said(0) and time.monotonic() < end:
            time.sleep(0.01)
        _, statuses = processes.kill_when(1, directory / "config.gin", signal.SIGTERM)
        said = processes.said(0) + processes.said(1)
        assert statuses == [errors.EXIT_START_AGAIN] * 2, said
        (step,) = complete_steps(directory)
        assert step > reached
        assert f"step {step} is in {directory}" in processes.said(0)
        assert (f"resumes after step {reached}" in processes.said(0)) == (reached > 0)
        reached = step
        run_helpers.checkpoint_arrays(directory / f"checkpoint_{step}")


def same_training(one, several, steps):
    """The same losses at every step, and the same arrays in every checkpoint that was kept."""
    rows = run_helpers.json_lines(several / "train" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for wanted, found in zip(
        run_helpers.json_lines(one / "train/metrics.jsonl"), rows, strict=True
    ):
        assert found == pytest.approx(wanted, rel=2e-4)
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    kept = sorted(path.name for path in one.glob("checkpoint_*"))
    assert f"checkpoint_{steps}" in kept
    assert kept == sorted(path.name for path in several.glob("checkpoint_*"))
    for name in kept:
        wanted, found = (run_helpers.checkpoint_arrays(where / name) for where in (one, several))
        assert found.keys() == wanted.keys()
        for path, array in wanted.items():
            scale = np.abs(array).max()
            np.testing.assert_allclose(found[path], array, atol=1e-5 * scale + 1e-12, err_msg=path)


def same_but_for_rounding(found, wanted):
    """Equal records, but for the last digits of their numbers."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-4), name
        else:
            assert found[name] == value, name
