"""Reads checkpoints of a bucket; run by test_gcs.py in a process of its own.

    python gcs_helpers.py FOLDER NAME ...

prints what each name's parameters hash to, or the message of its error. tensorstore's gcs driver
speaks HTTP to the server that TENSORSTORE_GCS_HTTP_URL names; small files, which etils reads with
TensorFlow's client, which cannot be sent elsewhere, are read from FOLDER/<bucket>/.
"""

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

    def __getattr__(self, name):
        method = getattr(backend.os_backend, name)

        def call(path, *arguments, **options):
            path = str(path).removeprefix("gs://").removeprefix("/gs/")
            if path.startswith(gcs_server.SECRET):
                from tensorflow import errors

                raise errors.PermissionDeniedError(
                    None, None, "Error executing an HTTP request: 403"
                )
            return method(f"{self._folder}/{path}", *arguments, **options)

        return call


def use_folder(folder):
    """Let etils read and write buckets in a folder, from now on."""
    bucket, plain = Bucket(folder), gpath.PosixGPath._backend
    gpath.PosixGPath._backend = property(
        lambda path: bucket if path._uri_scheme == "gs" else plain.fget(path)
    )


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
