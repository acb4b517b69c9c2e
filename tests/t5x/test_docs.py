"""The commands of docs/t5x.md, and those in the heads of `gin/t5x/runs/`."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import upstream_helpers

from promot_t5x import config

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "t5x.md").read_text()
RUNS = sorted(path for path in config.gin_root().glob("t5x/runs/*.gin") if path.stem != "training")
# Short enough to run them all; the byte vocabulary where a model's own would be fetched.
FEW = {"TRAIN_STEPS=300": "TRAIN_STEPS=4", "checkpoint_300": "checkpoint_4"}
BYTES = "--gin_file=models/byte_vocabulary.gin"


def section(heading):
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def scripts(text):
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def shell(script, cwd):
    """Run a script with the `promot-t5x` and the `python` of this environment."""
    names = cwd / "bin"
    names.mkdir()
    for name, words in {"promot-t5x": "-m promot_t5x", "python": ""}.items():
        (names / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (names / name).chmod(0o755)
    environment = upstream_helpers.environment()
    environment["PATH"] = f"{names}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6000:]


def test_the_first_run_runs(tmp_path):
    (script,) = scripts(section("A first run, on a made-up world"))
    for long, short in FEW.items():
        script = script.replace(long, short)
    script = script.replace("EVAL_PERIOD=100", "EVAL_PERIOD=4 --gin.EVALUATOR_NUM_EXAMPLES=8")
    shell(script.replace("t5x.eval ", "t5x.eval --gin.NUM_EXAMPLES=8 "), tmp_path)
    runs = tmp_path / "runs" / "t5x"
    assert {path.name for path in runs.iterdir()} == {
        *("base", "stage_one", "stage_two", "target", "suite")
    }
    suite = [path.name for path in (runs / "suite/inference_eval").glob("*-metrics.jsonl")]
    assert len(suite) == 8
    assert len(upstream_helpers.predictions(runs / "target", "tiny_rte", 4)) == 8


def commands():
    """(where it stands, its words) of every command of the real job."""
    (script,) = scripts(section("The real job"))
    heads = {"docs": script}
    for path in RUNS:
        lines = path.read_text().splitlines()
        heads[path.stem] = "\n".join(line[1:].strip() for line in lines if line.startswith("#"))
    root = str(config.gin_root())
    for place, text in heads.items():
        text = text.replace("\\\n", " ").replace("$(promot-t5x gin_path)", root)
        for line in text.splitlines():
            if line.startswith("python -m t5x."):
                yield place, shlex.split(line)


COMMANDS = list(commands())


def test_every_run_file_has_its_command():
    assert {place for place, _ in COMMANDS} == {"docs", *(path.stem for path in RUNS)}


@pytest.mark.parametrize(
    "words", [words for _, words in COMMANDS], ids=[place for place, _ in COMMANDS]
)
def test_a_command_is_read_by_t5x(words, tmp_path):
    verb = words[2].removeprefix("t5x.")
    files = [i for i, word in enumerate(words) if word.startswith("--gin_file=models/")]
    words = [*words[3 : files[0] + 1], BYTES, *words[files[0] + 1 :]]
    log = upstream_helpers.run(
        ["t5x.main", f"--run_mode={verb}", "--dry_run", *words], cwd=tmp_path
    )
    assert "DECODE_FN = @decoding.beam_search" in log
