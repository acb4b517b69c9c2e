"""What an error from inside a `tf.data` pipeline says, without what TensorFlow puts around it."""

import codecs
import re

# A Python function of the pipeline failed: its error's type and message, then a traceback.
_RAISED = re.compile(
    r"(?:^|\}\} |Iterator::\S+: )(\w[\w.]*: .*?)\nTraceback \(most recent call last\)", re.DOTALL
)
_ASSERTED = re.compile(r"assertion failed: \[(.*)\]\n\t \[\[\{\{node", re.DOTALL)
_OURS = "UserError: "


def stated(error: Exception) -> str | None:
    """Return the message of a check that failed inside the pipeline; None for other errors.

    Checks are `tf.debugging.Assert` and functions that raise `UserError`.
    """
    text = str(error)
    if match := _ASSERTED.search(text):
        # TensorFlow writes the bytes of the message as a C program would.
        return codecs.escape_decode(match[1].encode())[0].decode("utf-8", "replace")
    match = _RAISED.search(text)
    return match[1].removeprefix(_OURS) if match and match[1].startswith(_OURS) else None


def described(error: Exception) -> str:
    """Return what happened in as few words as say it."""
    if (message := stated(error)) is not None:
        return message
    match = _RAISED.search(str(error))
    return match[1] if match else f"{type(error).__name__}: {error}"
