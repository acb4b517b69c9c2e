"""Completion, by a real bash that has sourced the script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_helpers

# `complete -p` names the function that bash calls at TAB; it leaves its words in COMPREPLY.
BASH = """\
source <(promot-t5x completion bash)
[[ "$(complete -p promot-t5x)" =~ -F\\ ([a-zA-Z_]+) ]] || exit 1
tab() {
  COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
  read -ra COMP_WORDS <<< "$1"
  COMP_CWORD=${#COMP_WORDS[@]}
  "${BASH_REMATCH[1]}" promot-t5x
  echo "${COMPREPLY[@]}"
}
"""
LINES = {
    "promot-t5x st": {"status"},
    "promot-t5x promot --gin_file demo/mod": {"demo/model.gin"},
    "promot-t5x train --gin_file=mi": {"mine.gin"},
    "promot-t5x train --gin_file=mine.gin --gin.MI": {"--gin.MINE="},
    "promot-t5x eval --gin_file=runs/eval.gin --gin.CHECKPOINT_M": {"--gin.CHECKPOINT_MODE="},
    "promot-t5x train --gin_file=runs/finetune.gin --gin.MIXTURE_OR_TASK_NAME=\"'tiny_rt":
        {"'tiny_rte'", "'tiny_rte_1shot'"},
    "promot-t5x tasks show tiny_enf": {"tiny_enfr"},
    "promot-t5x launch local -- promot --dry": {"--dry_run"},
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What bash offers for each line, in a directory with a gin file of the user's."""
    place = tmp_path_factory.mktemp("completion")
    (place / "mine.gin").write_text("MINE = 3\n")
    (place / "lines").write_text("".join(f"{line}\n" for line in LINES))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", BASH + "while IFS= read -r line; do tab \"$line\"; done < lines"],
        cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(LINES, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("line", LINES)
def test_bash_offers_what_may_follow(answers, line):
    offered = {word.rpartition("=")[2] or word for word in answers[line].split()}
    assert offered >= LINES[line]
    stem = line.rsplit(" ", 1)[1].rpartition("=")[2].lstrip('"')
    assert all(word.startswith(stem) for word in offered)


@pytest.mark.parametrize(("shell", "said"), [("zsh", "compdef"), ("fish", "complete ")])
def test_other_shells_get_a_script_of_their_own(shell, said):
    assert said in run_helpers.succeed(["completion", shell])
