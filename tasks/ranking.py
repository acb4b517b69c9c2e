"""What a choice by likelihood is worth: as lm-evaluation-harness scores it, in percent.

Of a question with candidates (`templates.Candidates`), the metrics get as target

    {"answer": the right candidate's text, "right": its place, "candidates": all texts}

and as prediction, from `prediction`,

    {"answer": the text of the likeliest, "log_probs": of each, "greedy": of each, whether greedy
     decoding would say it}

so that every score can be computed again from the records. Where candidates answer questions of
their own, as in WinoGrande, `answer` holds question and candidate.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from promot_t5x.tasks.metrics import MeanOfExamples, Metric, check

# What a candidate's log-probability is divided by before candidates are compared.
_LENGTHS: dict[str, Callable[[str], int]] = {
    "acc": lambda text: 1,
    "acc_norm": len,
    "acc_bytes": lambda text: len(text.encode()),
}


@dataclasses.dataclass(frozen=True)
class MultipleChoice(MeanOfExamples):
    """Whether the right candidate is the likeliest one, by several measures.

    **Attributes:**

    - `measures`: of "acc" (the candidate's log-probability), "acc_norm" (divided by its
      characters, as lm-evaluation-harness divides) and "acc_bytes" (by its UTF-8 bytes); the
      first is the primary score. Of candidates that are equally likely the first is chosen.
    """

    measures: Sequence[str] = ("acc", "acc_norm")
    registered = "multiple_choice"

    def __post_init__(self) -> None:
        object.__setattr__(self, "measures", tuple(self.measures))
        if unknown := [name for name in self.measures if name not in _LENGTHS]:
            raise ValueError(f"there is no measure {unknown[0]!r}; there are {tuple(_LENGTHS)}")
        if not self.measures:
            raise ValueError(f"no measures: name one or more of {tuple(_LENGTHS)}")

    @property
    def scores(self) -> tuple[str, ...]:
        """The measures."""
        return tuple(self.measures)

    def shares(
        self, targets: Sequence[Mapping[str, Any]], predictions: Sequence[Any]
    ) -> Iterable[Sequence[float]]:
        """Whether the right candidate is chosen, by each measure."""
        for target, prediction in zip(targets, predictions, strict=True):
            log_probs = np.array(_ranked(prediction)["log_probs"], np.float64)
            yield tuple(
                int(np.argmax(log_probs / _sizes(measure, target["candidates"]))) == target["right"]
                for measure in self.measures
            )


@dataclasses.dataclass(frozen=True)
class Continuation(Metric):
    """How well a model continues a text with the one right candidate, LAMBADA's last word.

    `acc` is the share that greedy decoding would say; `perplexity`, 1 at best and no percentage,
    the inverse of the geometric mean of the examples' (not the tokens') probabilities.
    """

    registered = "continuation"
    scores = ("acc", "perplexity")

    def example_statistics(
        self, targets: Sequence[Mapping[str, Any]], predictions: Sequence[Any]
    ) -> Float64[np.ndarray, "examples k"]:
        """Whether it is said, its log-probability, and 1 to count it."""
        check(targets, predictions)
        pairs = zip(targets, map(_ranked, predictions), strict=True)
        rows = [(p["greedy"][t["right"]], p["log_probs"][t["right"]], 1.0) for t, p in pairs]
        return np.array(rows, np.float64)

    def value(self, sums: Float64[np.ndarray, "*b k"]) -> dict[str, Float64[np.ndarray, "*b"]]:
        """Means over the examples."""
        said, log_probs, count = np.moveaxis(sums, -1, 0)
        return {
            "acc": np.asarray(100.0 * said / count),
            "perplexity": np.asarray(np.exp(-log_probs / count)),
        }


def target(example: Mapping[str, Any]) -> dict[str, Any]:
    """Return what predictions are compared with, from an example of a task with candidates."""
    texts, right = _texts(example), int(example["right"])
    return {"answer": texts[right], "right": right, "candidates": _decoded(example["candidates"])}


def prediction(
    example: Mapping[str, Any], log_probs: Sequence[float], greedy: Sequence[bool]
) -> dict[str, Any]:
    """Return what the metrics get, from the scores of an example's candidates."""
    chosen = _texts(example)[int(np.argmax(log_probs))]
    return {"answer": chosen, "log_probs": [*log_probs], "greedy": [*greedy]}


def certain(example: Mapping[str, Any], *, right: bool) -> dict[str, Any]:
    """Return the prediction of a model that is sure of the right candidate, or that it is wrong."""
    places = range(len(example["candidates"]))
    are_right = [place == int(example["right"]) for place in places]
    log_probs = [0.0 if each == right else -1e4 for each in are_right]
    return prediction(example, log_probs, [each and right for each in are_right])


def _sizes(measure: str, texts: Sequence[str]) -> Float64[np.ndarray, " n"]:
    return np.array([max(_LENGTHS[measure](text), 1) for text in texts], np.float64)


def _ranked(prediction: Any) -> Mapping[str, Any]:
    if not isinstance(prediction, Mapping):
        raise ValueError(
            f"a task with candidates is scored by their likelihoods, and got the text "
            f"{prediction!r}: evaluate it with promot_t5x, which computes them"
        )
    return prediction


def _texts(example: Mapping[str, Any]) -> list[str]:
    texts = _decoded(example["candidates"])
    if "questions" not in example:
        return texts
    questions = _decoded(example["questions"])
    return [" ".join(pair) for pair in zip(questions, texts, strict=True)]


def _decoded(values: Iterable[Any]) -> list[str]:
    return [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values]
