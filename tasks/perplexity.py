"""How likely a model finds the right answers, given each token's predecessors (teacher forcing)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from promot_t5x.tasks.metrics import Metric


@dataclass(frozen=True)
class Perplexity(Metric):
    """The geometric mean of the target tokens' probabilities, and its inverse.

    `token_probability`, the primary score, is in percent; `perplexity`, 1 at best, is not.
    Predictions are `{"log_prob": of all the target's tokens, "tokens": how many}`.
    """

    registered = "perplexity"
    scores = ("token_probability", "perplexity")

    def example_statistics(
        self, targets: Sequence[Any], predictions: Sequence[Mapping[str, float]]
    ) -> Float64[np.ndarray, "examples k"]:
        """Log-probability and number of the target's tokens."""
        if len(targets) != len(predictions) or not len(predictions):
            raise ValueError(f"{len(targets)} targets, {len(predictions)} predictions")
        return np.array([(p["log_prob"], p["tokens"]) for p in predictions], np.float64)

    def value(self, sums: Float64[np.ndarray, "*b k"]) -> dict[str, Float64[np.ndarray, "*b"]]:
        """Of all tokens together, whichever example they belong to."""
        mean = np.asarray(sums[..., 0] / sums[..., 1])
        return {
            "token_probability": np.asarray(100.0 * np.exp(mean)),
            "perplexity": np.asarray(np.exp(-mean)),
        }
