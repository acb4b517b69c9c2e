"""The likelihood of given answers: of a batch's targets, and of each of several candidates.

The candidates of an example share its encoded inputs, so rank classification over three labels
costs one encoder pass and three short decoder rows.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from promot_t5x.decoding.batched import BatchedProgram, begun, fill_id
from promot_t5x.decoding.length_buckets import Batch
from promot_t5x.decoding.logits import NEGATIVE_INFINITY, token_log_prob
from promot_t5x.decoding.search import Method
from promot_t5x.network.attention import real_tokens

Params = Mapping[str, Any]
Tokens = Int[Array | np.ndarray, "batch length"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankClassification:
    """The likeliest of a task's labels is the answer, whatever the model would say by itself.

    Labels are compared by the log-probability of all their tokens, EOS included, as by T0
    (https://arxiv.org/abs/2110.08207).

    **Attributes:**

    - `others`: how tasks without labels or candidates are answered; none refuses them.
    """

    others: Method | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """No answer is decoded: the targets themselves are scored, for perplexity."""


def score(module: Any, params: Params, batch: Mapping[str, Tokens]) -> Float[Array, " batch"]:
    """Log-likelihood of the targets given the inputs, as T5X's `score_batch`.

    **Arguments:**

    - `batch`: `encoder_input_tokens`, `decoder_input_tokens`, `decoder_target_tokens` and
      `decoder_loss_weights`, each int32 [batch, length], not packed.

    **Returns** the weighted sum of the target tokens' log-probabilities.
    """
    targets = jnp.asarray(batch["decoder_target_tokens"])
    logits = module.apply(
        {"params": params},
        batch["encoder_input_tokens"],
        batch["decoder_input_tokens"],
        targets,
        enable_dropout=False,
    ).astype(jnp.float32)
    log_probs = token_log_prob(logits, targets)
    return jnp.sum(log_probs * batch["decoder_loss_weights"], axis=-1)


class CandidateScores(NamedTuple):
    """What a model makes of the candidates of some rows.

    **Attributes:**

    - `log_probs`: of each candidate given its row's inputs; -1e7 for one of padding alone.
    - `greedy`: whether each token of it is the likeliest one there, so that greedy decoding would
      say it too.
    """

    log_probs: Float[Array | np.ndarray, "batch n"]
    greedy: Bool[Array | np.ndarray, "batch n"]


def score_candidates(
    module: Any,
    params: Params,
    encoder_input_tokens: Tokens,
    candidates: Int[Array, "batch n tokens"],
    given: Int[Array, " batch"] | None = None,
    *,
    start_id: int | None = 0,
) -> CandidateScores:
    """Log-likelihood of each candidate given its row's inputs.

    **Arguments:**

    - `encoder_input_tokens`: ids, 0 where padded (-1 where `start_id` is None).
    - `candidates`: ids, EOS included where it counts, padded likewise.
    - `given`: how many ids at the start of a row's candidates are given, and not scored; none by
      default.
    - `start_id`: as `decoder.decode` takes it.
    """
    variables = {"params": params}
    encoder_input_tokens = jnp.asarray(encoder_input_tokens)
    encoded = module.apply(variables, encoder_input_tokens, enable_dropout=False, method="encode")
    cross = module.apply(variables, encoded, method="cross_key_values")
    before, first = begun(encoder_input_tokens, start_id)
    starts = jnp.broadcast_to(jnp.reshape(first, (-1, 1, 1)), (*candidates.shape[:2], 1))
    shifted = jnp.concatenate([starts, candidates[..., :-1]], axis=-1)
    targets = candidates.reshape(-1, candidates.shape[-1])
    logits = module.apply(
        variables,
        None,
        before,
        shifted.reshape(targets.shape),
        targets,
        enable_dropout=False,
        cross_key_values=cross,
        method="decode",
    ).astype(jnp.float32)
    counts = real_tokens(targets, fill_id(start_id)).reshape(candidates.shape)
    if given is not None:
        counts &= jnp.arange(candidates.shape[-1]) >= given[:, None, None]
    token_log_probs = token_log_prob(logits, targets).reshape(candidates.shape)
    likeliest = jnp.argmax(logits, axis=-1).reshape(candidates.shape) == candidates
    is_empty = ~jnp.any(counts, axis=-1)
    return CandidateScores(
        jnp.where(is_empty, NEGATIVE_INFINITY, jnp.sum(token_log_probs * counts, axis=-1)),
        jnp.all(likeliest | ~counts, axis=-1) & ~is_empty,
    )


@dataclasses.dataclass
class Scorer(BatchedProgram):
    """Scores candidates of examples of any lengths, with a few compiled programs.

    **Attributes:** those of `BatchedProgram`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._program = jax.jit(self._score, out_shardings=self._replicated)

    def run(
        self,
        params: Params,
        sequences: Sequence[np.ndarray],
        candidates: Sequence[Sequence[np.ndarray]],
        batches: Sequence[Batch],
        given: Sequence[int] | None = None,
    ) -> Iterator[tuple[Batch, CandidateScores]]:
        """Score some of the batches of a plan; yields each with its rows' scores.

        Rows with fewer candidates than the most there are have -1e7 for the rest.

        **Arguments:**

        - `sequences`, `candidates`: of all examples that were planned for; int32 ids without
          padding. The plan's limits are the lengths of the examples' longest candidates.
        - `given`: of each example, how many ids its candidates begin with that are not scored.
        """
        return self._results(self._started(params, sequences, candidates, batches, given))

    def _started(
        self,
        params: Params,
        sequences: Sequence[np.ndarray],
        candidates: Sequence[Sequence[np.ndarray]],
        batches: Sequence[Batch],
        given: Sequence[int] | None,
    ) -> Iterator[tuple[Batch, CandidateScores]]:
        most = max(map(len, candidates), default=0)
        for batch in batches:
            targets = self._filled(self.batch_size, most, batch.output_length)
            before = np.zeros(self.batch_size, np.int32)
            for position, row in enumerate(batch.rows):
                before[position] = 0 if given is None else given[row]
                for number, ids in enumerate(candidates[row]):
                    targets[position, number, : len(ids)] = ids
            inputs = self._padded(sequences, batch)
            yield batch, self._program(params, inputs, self._place(targets), self._place(before))

    def _score(
        self,
        params: Params,
        tokens: Tokens,
        candidates: Int[Array, "batch n tokens"],
        given: Int[Array, " batch"],
    ) -> CandidateScores:
        # Python runs this body once per program, when it is traced.
        self.compilations.append((tokens.shape[1], candidates.shape[2]))
        return score_candidates(
            self.module, params, tokens, candidates, given, start_id=self.start_id
        )
