"""Checkpoints of a bucket, through tensorstore's own gcs driver and a server on this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gcs_server
import pytest
from checkpoint_helpers import read_params, unpack
from etils import epath

from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.hashing import content_hash
from promot_t5x.checkpoints.paths import absolute

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
PUBLIC = "t5-data/pretrained_models/t5x"


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What reading said of each reference, and what the server was asked for."""
    folder = tmp_path_factory.mktemp("buckets")
    for kind, place in (
        ("legacy", f"{PUBLIC}/mt5_small"),
        ("orbax", "mine/run"),
        ("legacy", f"t5-data/{PUBLIC}/umt5_base"),
        ("legacy", "secret/run"),
    ):
        unpack(f"t5x_checkpoint_{kind}", folder / place)
    for place in (f"{PUBLIC}/mt5_small", f"t5-data/{PUBLIC}/umt5_base"):
        (folder / place / "checkpoint_7").rename(folder / place / "checkpoint_1000000")
    shutil.copytree(TESTS / "golden" / "hf_mt5", folder / "mine" / "hf")
    names = [
        "mt5_small",
        "gs://mine/run/checkpoint_7",
        "gs://mine/hf",
        "umt5_base",
        "gs://secret/run/checkpoint_7",
        "umt5_small",
        "gs://mine/run/checkpoint_8",
    ]
    with gcs_server.serve(folder) as (url, requests):
        environment = {**os.environ, "TENSORSTORE_GCS_HTTP_URL": url}
        environment |= {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "token"}
        done = subprocess.run(
            [sys.executable, str(TESTS / "helpers" / "gcs_helpers.py"), str(folder), *names],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(names, done.stdout.splitlines(), strict=True)), requests, folder


def test_arrays_come_through_the_driver_bit_for_bit(answers):
    said, requests, folder = answers
    local = folder / PUBLIC / "mt5_small" / "checkpoint_1000000"
    expected = content_hash(read_params(local))
    for name in ("mt5_small", "gs://mine/run/checkpoint_7", "umt5_base"):
        assert said[name] == expected, name
    assert said["gs://mine/hf"] == content_hash(read_params(TESTS / "golden" / "hf_mt5"))
    asked = "\n".join(requests)
    assert "target.token_embedder.embedding" in asked
    assert "manifest.ocdbt" in asked
    assert "state.param_states" not in asked  # nobody pays for the optimizer's slots


def test_what_may_not_be_read_and_what_is_not_there(answers):
    said, _, _ = answers
    assert "gs://secret/run/checkpoint_7 may not be read" in said["gs://secret/run/checkpoint_7"]
    assert "gcloud auth application-default login" in said["gs://secret/run/checkpoint_7"]
    assert "umt5_small is at none of gs://t5-data/pretrained_models/t5x/umt5/" in said["umt5_small"]
    missing = said["gs://mine/run/checkpoint_8"]
    assert "does not exist. Did you mean gs://mine/run/checkpoint_7?" in missing


def test_names_of_directories():
    there = read_arrays.kvstore(epath.Path("gs://t5-data/pretrained_models/t5x/mt5_xxl"))
    assert there == {"driver": "gcs", "bucket": "t5-data", "path": "pretrained_models/t5x/mt5_xxl/"}
    assert str(absolute("gs://t5-data/x/../y")) == "gs://t5-data/x/../y"
    assert read_arrays.kvstore(epath.Path("/a/b")) == {"driver": "file", "path": "/a/b/"}
