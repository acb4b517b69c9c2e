"""The only door through which the data modules reach SeqIO and TensorFlow."""

import functools
import os
from types import ModuleType

from promot_t5x import quiet
from promot_t5x.errors import UserError

PREPARE_TFDS = (
    "If its data come from TensorFlow Datasets, prepare them first (`promot-t5x tasks prepare "
    "NAME`, or with --module for a task of your own) or point --tfds_data_dir at "
    "the directory that holds them."
)


@functools.cache
def import_seqio() -> ModuleType:
    """Import SeqIO with TensorFlow kept quiet and off the accelerators.

    Raises `UserError` where SeqIO or TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with quiet.imports():
            import seqio
            import tensorflow as tf
    except ImportError as error:
        raise UserError(
            f"Reading a SeqIO task needs seqio and tensorflow, and importing them failed: {error}. "
            "Install them with `pip install seqio tensorflow tensorflow-text`."
        ) from error
    # Data sets read with their ids make TensorFlow warn of its own deprecated functions.
    tf.get_logger().setLevel("ERROR")
    # TensorFlow would otherwise take the memory that JAX is about to use.
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:
            # The user's module has already used TensorFlow, so its devices are settled.
            continue
    return seqio  # type: ignore[no-any-return]


def import_tensorflow() -> ModuleType:
    """TensorFlow, prepared as `import_seqio` does."""
    import_seqio()
    import tensorflow

    return tensorflow  # type: ignore[no-any-return]
