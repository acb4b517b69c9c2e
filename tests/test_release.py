"""A release as its users get it: archives, an install without a network, the container image."""

import os
import re
import subprocess
import sys

import pytest
import run_helpers
import yaml
from package_helpers import ROOT, bare_environment, copy_of_the_clone

from promot_t5x import __version__

pytestmark = pytest.mark.slow

ALONE = ("--no-deps", "--ignore-installed")
# The demonstration, cut to a few steps and questions; its table has all its rows.
SHORT = [
    "promot", "--gin_file=demo/final.gin", "--gin.SEEDS=None", "--gin.MODEL_DIR='run'",
    "--gin.PROMPT_STEPS=2", "--gin.TRAIN_STEPS=2",
    "--gin_bindings=suite/evaluate.EvalConfig.num_examples = 8",
]  # fmt: skip


def run(words, cwd, **environment):
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, capture_output=True, text=True,
        # A user's PYTHONPATH would come before what is installed.
        env={**run_helpers.environment(), "PYTHONPATH": "", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return copy_of_the_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def archives(clone, tmp_path_factory):
    """The folder of the source archive and the wheel, as CONTRIBUTING.md makes them."""
    out = tmp_path_factory.mktemp("dist")
    build = f"import setuptools.build_meta as b; b.build_sdist('{out}'); b.build_wheel('{out}')"
    run([sys.executable, "-c", build], clone)
    return out


def test_an_index_would_take_the_archives(archives):
    names = sorted(path.name for path in archives.iterdir())
    assert names == [f"promot_t5x-{__version__}{end}" for end in ("-py3-none-any.whl", ".tar.gz")]
    said = run([sys.executable, "-m", "twine", "check", "--strict", *archives.iterdir()], archives)
    assert said.count("PASSED") == 2, said


def test_the_wheel_installs_without_a_network_and_runs_the_demonstration(archives, tmp_path):
    home = bare_environment(tmp_path)
    pip = [home / "python", "-m", "pip", "--isolated"]
    run([*pip, "install", "--no-index", "--find-links", archives, *ALONE, "promot-t5x"], tmp_path)
    # Whatever the wheel requires must be among what is there, in a version that it allows.
    check = subprocess.run([*pip, "check"], cwd=tmp_path, capture_output=True, text=True)
    assert "promot-t5x" not in check.stdout, check.stdout
    where = run([home / "python", "-c", "import promot_t5x; print(promot_t5x.__file__)"], tmp_path)
    assert where.startswith(str(tmp_path / "venv"))
    said = run([home / "promot-t5x", *SHORT], tmp_path)
    for row in ("pretrained", "standard fine-tuning", "ProMoT", "untrained prompt, removed"):
        assert re.search(rf"^ *{row} +\d", said, re.M), said
    run([home / "promot-t5x", "report", "run", "--output", "page"], tmp_path)
    assert (tmp_path / "page" / "report.html").stat().st_size > 10_000


def docker_instructions():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_images_instructions_are_clean():
    hadolint = os.path.join(os.path.dirname(sys.executable), "hadolint")
    run([hadolint, "--failure-threshold", "info", ROOT / "Dockerfile"], ROOT)


def test_the_images_commands_install_the_program(clone, tmp_path):
    """`RUN` in a clone, by the image's shell and without a network; then what the image starts."""
    home = bare_environment(tmp_path)
    path = f"{home}:{os.environ['PATH']}"
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull,
               "PIP_NO_DEPS": "1", "PIP_IGNORE_INSTALLED": "1"}  # fmt: skip
    instructions = docker_instructions()
    for name, command in instructions:
        if name == "RUN":
            run(["sh", "-c", command], clone, EXTRA="", PATH=path, **offline)
    words = [yaml.safe_load(value) for name, value in instructions if name in ("ENTRYPOINT", "CMD")]
    assert words == [["promot-t5x"], ["--help"]]
    assert "commands:" in run([home / words[0][0], *words[1]], tmp_path, PATH=path)


@pytest.mark.parametrize(("extra", "wanted"), [("", "."), ("tpu", ".[tpu]"), ("cuda", ".[cuda]")])
def test_the_images_argument_names_an_extra(extra, wanted, tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    (command,) = (command for name, command in docker_instructions() if name == "RUN")
    path = f"{tmp_path}:{os.environ['PATH']}"
    said = run(["sh", "-c", command], tmp_path, EXTRA=extra, PATH=path)
    assert said.splitlines()[-1] == wanted
    assert ("ARG", 'EXTRA=""') in docker_instructions()
