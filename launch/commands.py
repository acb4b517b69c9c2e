"""Commands of other programs: shown before they run, with secrets out of sight.

A word is quoted for a shell exactly once, by `shlex`, where a command is shown or written to a
script; what runs here runs without a shell.
"""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from promot_t5x.errors import UserError

HIDDEN = "***"
_SECRET_NAME = r"[A-Z0-9_]*(?:TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)"
_SECRET_VALUE = re.compile(rf"(?<![A-Z0-9_])({_SECRET_NAME}=)('[^']*'|\"[^\"]*\"|[^\s'\"]+)")
_READ_SECONDS = 600.0  # deleting a slice may take minutes
_TIMED_OUT = 124  # as `timeout` ends
_SHORTEST_SECRET = 6  # characters; shorter values would blot out ordinary words


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret: HF_TOKEN, WANDB_API_KEY."""
    return re.fullmatch(_SECRET_NAME, name.upper()) is not None


class Redactor:
    """Replaces the values of secrets in a text by `***`.

    Secrets are what `environ` holds under a secret's name, and what a text assigns to one.
    """

    def __init__(self, environ: Mapping[str, str]):
        self._values = sorted(
            {v for n, v in environ.items() if is_secret(n) and len(v) >= _SHORTEST_SECRET},
            key=len,
            reverse=True,
        )

    def __call__(self, text: str) -> str:
        """Return the text with `***` in place of secrets."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        return _SECRET_VALUE.sub(rf"\1{HIDDEN}", text)


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that has ended.

    **Attributes:**

    - `status`: its exit status.
    - `out`, `err`: its stdout and stderr, where they were read.
    """

    status: int
    out: str = ""
    err: str = ""


class Shell:
    """Runs commands, each shown first; in a dry run they are shown only.

    **Arguments:**

    - `dry`: show and do not run; every command then ends well.
    - `redact`: what is shown goes through it.
    """

    def __init__(self, *, dry: bool, redact: Redactor):
        self.dry, self.redact = dry, redact

    def say(self, text: str) -> None:
        """Print a remark of the launcher's own, as a comment between commands."""
        print(self.redact(f"# {text}"), flush=True)

    def show_file(self, name: str, text: str) -> None:
        """Print a file that a command takes."""
        body = "".join(f"    {line}\n".rstrip(" ") for line in self.redact(text).splitlines())
        print(f"# {name}:\n{body}", end="", flush=True)

    def show(self, words: Sequence[str], stdin: str | None = None) -> None:
        """Print a command as a shell would take it."""
        print(self.redact(shlex.join(words)) + (" < (above)" if stdin else ""), flush=True)

    def run(self, words: Sequence[str], *, stdin: str | None = None) -> Done:
        """Run a command whose output goes where the launcher's goes."""
        self.show(words, stdin)
        if self.dry:
            return Done(0)
        return Done(self._start(words, input=stdin, text=True).returncode)

    def read(self, words: Sequence[str], *, dry: str = "", loud: bool = True) -> Done:
        """Run a command and read its output; its stderr is shown too.

        **Arguments:**

        - `dry`: its stdout in a dry run.
        - `loud`: whether the command is shown.

        **Returns:** how it ended; with status 124 where it did not end within ten minutes.
        """
        if loud:
            self.show(words)
        if self.dry:
            return Done(0, dry)
        try:
            done = self._start(words, capture_output=True, text=True, timeout=_READ_SECONDS)
        except subprocess.TimeoutExpired:
            return Done(_TIMED_OUT, err=f"no answer within {_READ_SECONDS:g} s")
        if done.stderr:
            print(self.redact(done.stderr), end="", file=sys.stderr, flush=True)
        return Done(done.returncode, done.stdout, done.stderr)

    def follow(
        self, words: Sequence[str], line: Callable[[str], None], *, silence_seconds: float
    ) -> int | None:
        """Run a command and pass on its lines; its status, or None after a silence too long."""
        self.show(words)
        if self.dry:
            return 0
        with self._open(words) as process:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            unread, heard = b"", time.monotonic()
            while True:
                chunk = process.stdout.read()
                if chunk:
                    heard = time.monotonic()
                    *lines, unread = (unread + chunk).split(b"\n")
                    for each in lines:
                        line(self.redact(each.decode(errors="replace")))
                elif process.poll() is not None:
                    if unread:
                        line(self.redact(unread.decode(errors="replace")))
                    return process.returncode
                elif time.monotonic() - heard > silence_seconds:
                    process.kill()
                    return None
                else:
                    time.sleep(0.05)

    def _start(self, words: Sequence[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        sys.stdout.flush()
        try:
            return subprocess.run(words, **settings)
        except FileNotFoundError:
            raise _missing(words[0]) from None

    def _open(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except FileNotFoundError:
            raise _missing(words[0]) from None


def _missing(program: str) -> UserError:
    return UserError(
        f"{program!r} is not installed here, or not on PATH; with --print the launcher shows what "
        "it would run, and needs none of it."
    )


def parse_environment(given: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """`NAME` (this process's own value) and `NAME=VALUE` words as a mapping.

    **Raises:** `UserError` for a name that is not one, or has no value here.
    """
    found = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"--env={Redactor(environ)(word)}: give NAME or NAME=VALUE.")
        if not equals and name not in environ:
            raise UserError(f"--env={name}: {name} is not set here; give --env={name}=VALUE.")
        found[name] = value if equals else environ[name]
    return found


def check_name(name: str) -> str:
    """Return a name that clouds take: lower-case letters, digits, dashes, at most 40 characters.

    **Raises:** `UserError` where it is not one.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise UserError(
            f"--name={name!r}: use lower-case letters, digits and dashes, a letter first, at most "
            "40 characters."
        )
    return name
