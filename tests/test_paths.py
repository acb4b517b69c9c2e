"""Paths as users give them: what they mean, and what is refused wherever they are given."""

import os

import pytest
from etils import epath

from promot_t5x.cli.main import main
from promot_t5x.errors import UserError
from promot_t5x.paths import is_remote, make_directory, user_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("/data/run", "/data/run"),
        ("runs/x", "runs/x"),
        ("~/run", "/home/me/run"),
        ("~", "/home/me"),
        ("gs://bucket/run", "gs://bucket/run"),
        ("GS://bucket/run", "gs://bucket/run"),
        ("file:///data/a%20b", "/data/a b"),
        ("file://localhost/data/run", "/data/run"),
        ("file:/data/run", "/data/run"),
        ("run:1", "run:1"),
        ("a/b:c", "a/b:c"),
        ("two words", "two words"),
        (epath.Path("gs://bucket/run"), "gs://bucket/run"),
    ],
)
def test_one_text_means_one_place(given, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = user_path(given, "MODEL_DIR")
    assert str(path) == meant
    assert is_remote(path) == meant.startswith("gs://")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        (" /data/run", "white space"),
        ("/data/run\n", "white space"),
        ("/data/\x00run", "does not print"),
        ("gs:/bucket/run", "write gs://bucket/directory"),
        ("gs:///run", "write gs://bucket/directory"),
        ("gs:run", "write gs://bucket/directory"),
        ("gcs://bucket/run", "Did you mean 'gs'?"),
        ("https://host/run", "not https://"),
        ("file://host/run", "no local path"),
        ("file:run", "no local path"),
        ("~nobody_of_that_name/run", "there is no user 'nobody_of_that_name'"),
        ("$HOME/run", "$HOME is the name of a variable"),
        ("/data/${USER}/run", "${USER} is the name of a variable"),
        (None, "MODEL_DIR = None is no path"),
        (3, "MODEL_DIR = 3 is no path"),
        (["/data/run"], "is no path"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, said):
    with pytest.raises(UserError) as error:
        user_path(given, "MODEL_DIR")
    assert str(error.value).startswith("MODEL_DIR = ")
    assert said in str(error.value)


def test_directories_for_results(tmp_path):
    make_directory(epath.Path(tmp_path / "a/b"), "MODEL_DIR")
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").write_text("")
    for path, said in (("file", "is a file"), ("file/run", "cannot be written (Not a directory)")):
        with pytest.raises(UserError, match=r"^MODEL_DIR = ") as error:
            make_directory(epath.Path(tmp_path / path), "MODEL_DIR")
        assert said in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_directory(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="cannot be written"):
        make_directory(epath.Path(tmp_path / "run"), "MODEL_DIR")
    with pytest.raises(UserError, match="cannot be written"):
        make_directory(epath.Path(tmp_path), "MODEL_DIR")


@pytest.mark.parametrize(
    "words",
    [
        ["ckpt", "show", "gs:/bucket/x"],
        ["ckpt", "verify", "gs:/bucket/x"],
        ["ckpt", "diff", "gs:/bucket/x", "gs:/bucket/y"],
        ["prompt", "show", "gs:/bucket/x"],
        ["convert", "gs:/bucket/x", "y", "--to", "hf"],
        ["report", "gs:/bucket/x"],
        ["score", "gs:/bucket/x"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_every_command_reads_paths_alike(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "'gs:/bucket/x' names no bucket: write gs://bucket/directory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
