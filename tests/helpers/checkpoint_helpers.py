"""A tiny state to save, and ways to damage what was saved."""

import tarfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from engine_helpers import GOLDEN

from promot_t5x.checkpoints.opening import open_checkpoint

# Python 3.11.2, Debian 12's, has no filters yet; later ones ask for one.
_FILTER = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def unpack(name, directory):
    """Unpack an archive of `golden/` by its name, without the ending, into a directory."""
    with tarfile.open(GOLDEN / f"{name}.tar.gz") as archive:
        archive.extractall(directory, **_FILTER)


class Slots(NamedTuple):
    """A state like Adafactor's: unused slots have shape (1,)."""

    count: jax.Array
    v: dict
    rest: tuple


def make_state(seed=0, sharding=None):
    def place(x):
        return jnp.asarray(x) if sharding is None else jax.device_put(x, sharding)

    rng = np.random.default_rng(seed)
    trainable = {
        "decoder": {"kernel": place(rng.standard_normal((16, 8), np.float32))},
        "encoder": {"scale": jnp.asarray(rng.standard_normal(8), jnp.bfloat16)},
    }
    slots = Slots(
        count=jnp.int32(seed),
        v={"kernel": place(rng.standard_normal((16, 8), np.float32)), "scale": jnp.zeros((1,))},
        rest=(optax.EmptyState(), None, np.float32(0.1 * seed)),
    )
    return trainable, slots


def array_files(step_dir):
    """The files that hold array data, the largest first."""
    files = [f for f in (step_dir / "state").rglob("d/*") if f.is_file()]
    return sorted(files, key=lambda f: -f.stat().st_size)


def flip_arrays(step_dir):
    """Flip a bit in every data file: orbax leaves some that nothing refers to any more."""
    for file in array_files(step_dir):
        flip(file)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def read_params(path, *, layout=None, **options):
    """The parameters of any checkpoint as a nested dict."""
    return open_checkpoint(path, layout=layout).read_tree(**options)
