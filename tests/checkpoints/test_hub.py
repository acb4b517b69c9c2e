"""Bases from, and exports to, a hub on this machine that answers as Hugging Face's does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import run_helpers
from checkpoint_helpers import read_params
from etils import epath
from flax.traverse_util import flatten_dict
from hub_server import TOKEN

from promot_t5x.checkpoints.formats import safetensors

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[1] / "golden" / "hf_mt5"
# huggingface_hub reads its settings when it is imported: a process, with many commands.
SESSION = """\
import contextlib, io, json, os, sys
from promot_t5x.cli import main
ended = []
for words, token in json.load(sys.stdin):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = main.main(words)
    ended.append((status, out.getvalue()))
json.dump(ended, sys.stdout)
"""


def session(commands, home, **environment):
    """(status, output) of each (words, token), given one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", SESSION], input=json.dumps(commands), cwd=home, text=True,
        env={**run_helpers.environment(), "HF_HOME": str(home / "cache"), "TMPDIR": str(home),
             **environment},
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stderr
    return json.loads(done.stdout)


def gin_of(reference):
    return ["convert", reference, "--gin"]


COMMANDS = {
    "converted": (["convert", "hf://org/model@v1", "copy", "--to", "promot"], None),
    "gated": (gin_of("hf://org/gated"), None),
    "admitted": (gin_of("hf://org/gated"), TOKEN),
    "absent": (gin_of("hf://org/none"), "hf_wrong"),
    "no revision": (gin_of("hf://org/model@v9"), None),
    "no name": (gin_of("hf://org/model@"), None),
    "busy": (gin_of("hf://org/busy"), None),
    "cut": (gin_of("hf://org/cut"), None),
    "broken": (gin_of("hf://org/broken"), None),
    "no token": (["convert", str(MODEL), "x", "--to", "hf", "--push", "org/new"], None),
    "other format": (["convert", str(MODEL), "x", "--to", "t5x", "--push", "org/new"], TOKEN),
    "pushed": (["convert", str(MODEL), "out", "--to", "hf", "--push", "org/new"], TOKEN),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(home):
    with hub_server.serving(MODEL) as hub:
        yield hub


@pytest.fixture(scope="module")
def ended(hub, home):
    # Xet's storage is a service of its own; the hub takes large files without it, too.
    settings = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1"}
    found = session(list(COMMANDS.values()), home, **settings)
    return dict(zip(COMMANDS, found, strict=True))


def test_a_model_on_the_hub_is_a_base_like_any_other(ended, home):
    assert ended["converted"][0] == 0, ended["converted"]
    found = flatten_dict(read_params(home / "copy" / "checkpoint_0"), sep="/")
    wanted = flatten_dict(read_params(MODEL), sep="/")
    run_helpers.assert_same_arrays(found, wanted)
    assert ended["admitted"][0] == 0, ended["admitted"]


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("gated", 2, "hf://org/gated is gated: accept its terms on its page, and set HF_TOKEN"),
        ("absent", 2, "hf://org/none: the hub has no such model, or it is private"),
        ("no revision", 2, "hf://org/model@v9: there is no such revision"),
        ("no name", 2, "'hf://org/model@' names no model: write hf://organization/name"),
        ("busy", 1, "hf://org/busy: the hub did not answer as it should (status 429)"),
        ("broken", 1, "hf://org/broken: the hub did not answer as it should"),
        ("no token", 2, "set HF_TOKEN to a token that may"),
        ("other format", 2, "--push uploads Hugging Face's format: --to hf, not t5x"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_helps(ended, home, command, status, said):
    """A status of 1 makes launchers try again, 2 does not."""
    assert ended[command][0] == status, ended[command]
    assert said in ended[command][1]
    assert "fault of this program" not in ended[command][1]
    assert "hf_" not in ended[command][1].replace("hf_mt5", "")
    assert not (home / "x").exists()


def test_a_download_that_is_cut_goes_on(ended):
    assert ended["cut"][0] == 0, ended["cut"]


def test_an_export_is_uploaded_whole_to_a_private_repository(ended, hub, home):
    status, out = ended["pushed"]
    assert status == 0, out
    assert f"uploaded: {hub.address}/org/new/commit/" in out
    assert TOKEN not in out
    assert [(one["name"], one["visibility"]) for one in hub.created] == [("new", "private")]
    written = {path.name: path.read_bytes() for path in (home / "out").iterdir()}
    assert hub.uploads == written
    assert safetensors.open_file(epath.Path(home / "out" / "model.safetensors"))
    card = hub.uploads["README.md"].decode()
    assert card.startswith("---\nlicense: unknown\nlibrary_name: transformers\n---\n\n# org/new\n")
    assert f"`{MODEL}`. Its license is not recorded" in card


def test_offline_the_cache_suffices(ended, home):
    again, missing = session(
        [(gin_of("hf://org/model@v1"), None), (gin_of("hf://org/other"), None)],
        home,
        HF_HUB_OFFLINE="1",
    )
    assert again[0] == 0, again
    assert missing[0] == 2
    assert f"hf://org/other is not in the cache ({os.path.realpath(home)}" in missing[1]
