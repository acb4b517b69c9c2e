"""Processes that need not import everything again: `python forked.py` forks them on demand.

Real processes, each with a command line of `promot-t5x` to run and a log of its own. Importing
TensorFlow and JAX costs more than all that a tiny run computes, so it is done once, in a server
that starts no thread and touches no device before it forks.

Reads a line of JSON on stdin, `[[words, log, directory], …]`, and writes one with the processes'
ids; when all of them have ended, another one with their exit statuses (negative: the signal that
ended them).
"""

import json
import os
import sys


def main() -> None:
    from promot_t5x.data import lazy
    from promot_t5x.runs import (
        promot,  # noqa: F401
        train,  # noqa: F401
    )

    lazy.import_tensorflow()
    lazy.import_seqio()
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a forked process would lack all but one"
    for line in sys.stdin:
        pids = [_fork(*each) for each in json.loads(line)]
        _answer(pids)
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        _answer([os.waitstatus_to_exitcode(status) for status in statuses])


def _answer(numbers: list[int]) -> None:
    print(json.dumps(numbers), flush=True)


def _fork(words: list[str], log: str, directory: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.chdir(directory)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    from promot_t5x.cli import main as cli

    sys.argv = ["promot-t5x", *words]
    sys.exit(cli.main(words))


if __name__ == "__main__":
    main()
