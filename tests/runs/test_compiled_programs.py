"""What one launch compiles, the next one reads, whatever became of it in between."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_helpers
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from promot_t5x import errors
from promot_t5x.runs import compiled_programs


@pytest.fixture
def unset(monkeypatch):
    """As a user's process: no directory of JAX's own; here any program is worth keeping."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    for name, value in zip(names, (None, 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def launch(directory, capsys):
    """What a program gives that is new to this process, and what is said of the launch."""
    jax.clear_caches()
    with compiled_programs.kept(directory):
        value = jax.jit(lambda x: jnp.sin(x) @ x.T + 3)(np.ones((4, 4), np.float32))
    return np.asarray(value), capsys.readouterr()


def entries(directory):
    return [path for path in directory.rglob("*-cache") if path.is_file()]


def test_what_was_compiled_is_read_and_the_settings_are_the_callers_again(tmp_path, unset, capsys):
    directory = epath.Path(tmp_path)
    first, said = launch(directory, capsys)
    assert said.out.startswith("programs: 0 read, ")
    again, said = launch(directory, capsys)
    assert ", 0 compiled (" in said.out
    np.testing.assert_array_equal(first, again)
    assert all(path.with_name(f"{path.name}.sha256").exists() for path in entries(tmp_path))
    assert jax.config.jax_compilation_cache_dir is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: path.with_name(f"{path.name}.sha256").unlink(),  # killed while it was written
    ],
)
def test_what_is_damaged_is_compiled_again_and_mended(tmp_path, unset, capsys, damage):
    directory = epath.Path(tmp_path)
    first, _ = launch(directory, capsys)
    for path in entries(tmp_path):
        damage(path)
    again, said = launch(directory, capsys)
    assert said.out.startswith("programs: 0 read, ")
    assert not said.err
    np.testing.assert_array_equal(first, again)
    assert ", 0 compiled (" in launch(directory, capsys)[1].out


def test_where_nothing_can_be_kept_a_run_goes_on_and_says_so(tmp_path, unset, capsys):
    (tmp_path / compiled_programs.DIRECTORY).write_text("a file")
    value, said = launch(epath.Path(tmp_path), capsys)
    assert value.shape == (4, 4)
    assert not said.out
    assert said.err.startswith("compiled programs are not kept: ")
    assert len(said.err.splitlines()) == 1


def test_a_cache_of_the_users_own_is_left_alone(tmp_path, unset, capsys):
    own, directory = tmp_path / "own", epath.Path(tmp_path / "run")
    jax.config.update("jax_compilation_cache_dir", str(own))
    compilation_cache.reset_cache()
    _, said = launch(directory, capsys)
    assert entries(own)
    assert not directory.exists()
    assert not said.out
    launch(None, capsys)


def compiled(said):
    """(name, key) of each program that a process says it had to compile."""
    return set(re.findall(r"CACHE MISS for '(\w+)' with key '([\w-]+)'", said))


@pytest.mark.slow
def test_a_run_that_was_preempted_compiles_nothing_again(tmp_path):
    """Two launches of one command in processes of their own: the second has steps left to do."""
    lab = run_helpers.Lab(tmp_path)
    command = [sys.executable, "-m", "promot_t5x"]
    command += lab.words("train", "pretrain", "train", MODEL_DIR=tmp_path / "run")
    environ = {
        **run_helpers.environment(),
        "JAX_COMPILATION_CACHE_DIR": "",
        "JAX_EXPLAIN_CACHE_MISSES": "1",
    }
    launches = []
    for status in (errors.EXIT_START_AGAIN, 0):
        said = ""
        with subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout:
                said += line
                if status and "step 2: validation" in line:
                    process.terminate()
        assert process.returncode == status, said
        launches.append(compiled(said))
    first, second = launches
    assert "jit_train_step" in {name for name, _ in first}
    assert not first & second
    assert "jit_train_step" not in {name for name, _ in second}
    assert re.search(r"^programs: [1-9]\d* read, ", said, re.M)
