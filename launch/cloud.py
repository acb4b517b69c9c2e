"""Questions to a cloud's command-line program, whose failures are not answers.

A program that fails may mean that the thing is not there, that the request can never succeed, or
only that the network failed for a moment. Whatever deletes or restarts a run needs the first; the
second is the user's to fix; the third is asked again.
"""

import re
from collections.abc import Sequence

from promot_t5x.errors import UserError
from promot_t5x.launch.commands import Done, Shell
from promot_t5x.launch.retries import Retries

_MISSING = re.compile(r"\bNOT_FOUND\b|\(NotFound\)")
# What no repetition changes. gcloud words its own complaints about arguments with `argument --`.
_REFUSED = re.compile(
    r"INVALID_ARGUMENT|PERMISSION_DENIED|UNAUTHENTICATED|Reauthentication|does not have permission"
    r"|active account|unrecognized arguments|argument --|\(Forbidden\)|\(Unauthorized\)|\(Invalid\)"
    r"|\(BadRequest\)"
)
_QUOTA = re.compile(r"\bquota\b", re.IGNORECASE)


class CloudError(Exception):
    """A cloud gave no answer, or did not do what it must, after all retries.

    What runs there, and what it costs, is unchanged; the message says how to go on.
    """


def is_missing(done: Done) -> bool:
    """Whether a failed command says that the thing it names does not exist."""
    return done.status != 0 and _MISSING.search(done.err) is not None


def is_refused(done: Done, *, quota: bool = False) -> bool:
    """Whether a failed command says that it can never succeed as it stands.

    **Arguments:**

    - `quota`: whether a quota that is used up counts. It does for the first request, and does not
      where a slice is replaced, because its predecessor may still be counted.
    """
    return done.status != 0 and (
        _REFUSED.search(done.err) is not None or (quota and _QUOTA.search(done.err) is not None)
    )


def reason(done: Done) -> str:
    """Return the last lines of a failed command's stderr, or else its status."""
    lines = [line for line in done.err.splitlines() if line.strip()]
    return " ".join(lines[-3:]) or f"exit status {done.status}"


def ask(
    shell: Shell, words: Sequence[str], retries: Retries, *, dry: str = "", loud: bool = True
) -> str | None:
    """Run a command until it answers: an empty answer is none.

    **Arguments:**

    - `retries`: how often and at which pace it is repeated while it fails.
    - `dry`: its stdout in a dry run; an empty one stands for a missing thing.
    - `loud`: whether the command is shown.

    **Returns:** its stdout, or None where it says that the thing does not exist.

    **Raises:** `UserError` where it is refused, `CloudError` where it gives no answer.
    """
    while True:
        done = shell.read(words, dry=dry, loud=loud)
        if shell.dry:
            return dry or None
        if is_missing(done):
            return None
        if done.status == 0 and done.out.strip():
            return done.out.strip()
        if is_refused(done):
            raise UserError(f"{' '.join(words[:5])} was refused: {reason(done)}")
        if not retries.again(f"{words[0]} gave no answer", shell.say):
            raise CloudError(f"{' '.join(words[:5])} gave no answer: {reason(done)}")
