"""Reads checkpoints of a bucket; run by test_gcs.py in a process of its own.

    python gcs_helpers.py FOLDER NAME ...

prints what each name's parameters hash to, or the message of its error. tensorstore's gcs driver
speaks HTTP to the server that TENSORSTORE_GCS_HTTP_URL names; small files, which etils reads with
TensorFlow's client, which cannot be sent elsewhere, are read from FOLDER/<bucket>/.
"""

import functools
import sys

import gcs_server
from etils.epath import backend, gpath

from promot_t5x.checkpoints.hashing import content_hash
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.errors import UserError


class Bucket:
    """etils' operations on a local folder; `secret` buckets refuse, as TensorFlow words it."""

    def __init__(self, folder):
        self._folder = folder

    def local(self, argument):
        """A path of a bucket in the folder; anything else as it is."""
        for scheme in ("gs://", "/gs/"):
            if str(argument).startswith(scheme):
                return f"{self._folder}/{str(argument).removeprefix(scheme)}"
        return argument

    def __getattr__(self, name):
        method = getattr(backend.os_backend, name)

        def call(path, *arguments, **options):
            if str(path).startswith(f"gs://{gcs_server.SECRET}"):
                from tensorflow import errors

                raise errors.PermissionDeniedError(
                    None, None, "Error executing an HTTP request: 403"
                )
            found = method(self.local(path), *map(self.local, arguments), **options)
            if name == "glob" and self.local(path) != path:
                return [each.replace(f"{self._folder}/", "gs://", 1) for each in found]
            return found

        return call


def use_folder(folder):
    """Let etils, and TensorFlow's events, read and write buckets in a folder, from now on."""
    import tensorflow as tf

    bucket, plain = Bucket(folder), gpath.PosixGPath._backend
    for module, name in (
        (tf.summary, "create_file_writer"), (tf.io, "TFRecordWriter"), (tf.data, "TFRecordDataset")
    ):  # fmt: skip
        opened = functools.partial(_opened, bucket, getattr(module, name))
        setattr(module, name, opened)
    gpath.PosixGPath._backend = property(
        lambda path: bucket if path._uri_scheme == "gs" else plain.fget(path)
    )


def _opened(bucket, inner, path, **how):
    return inner(bucket.local(path), **how)


def main(folder, names):
    """Read each checkpoint."""
    use_folder(folder)
    for name in names:
        try:
            print(content_hash(open_checkpoint(name).read_tree()))
        except UserError as error:
            print("UserError:", error)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
