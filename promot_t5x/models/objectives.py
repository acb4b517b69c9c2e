"""What a stage may minimize in place of plain cross-entropy, so that a model forgets less.

An objective says for each token how much its loss counts and what is added to it. Most see a chunk
of tokens at a time, as the loss does; `TALR` needs the losses of the whole batch before. A stage
without one has the loss of `loss` bit for bit.

| objective               | a token's loss             | source     |
|-------------------------|----------------------------|------------|
| `DFT`                   | sg(p(y)) · L               | 2508.05629 |
| `EAFT`                  | sg(H(p) / ln V) · L        | 2601.02151 |
| `SelectiveTokenMasking` | [1 / p_base(y) ≤ τ] · L    | 2501.14315 |
| `KLToBase`              | L + β · KL(p_base over p)  | 2602.16093 |
| `TALR`                  | sg(n · w) · L              | 2509.20758 |

L is the token's cross-entropy with its z-loss and label smoothing, y its target, p the model's
distribution, H its entropy, V the size of the vocabulary, sg no gradient. The base is the model as
the stage began, without dropout, on the same inputs. w is p(y)^(1/τ) over its sum in the batch of n
target tokens, τ the median of the sequences' mean cross-entropies.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from promot_t5x.config import validation
from promot_t5x.errors import UserError

Logits = Float[Array, "*tokens vocab"]
Targets = Int[Array, "*tokens"]


class Terms(NamedTuple):
    """What an objective makes of each token's loss L: `factor` · L + `addition`."""

    factor: Float[Array, "*tokens"]
    addition: Float[Array, "*tokens"]


@runtime_checkable
class TokenObjective(Protocol):
    """A function of a chunk of tokens.

    **Attributes:**

    - `needs_base`: whether it is given the base's logits, for which the step keeps what trains as
      it was at the stage's beginning.
    """

    @property
    def needs_base(self) -> bool:
        """See the class."""
        ...

    def __call__(self, logits: Logits, targets: Targets, base_logits: Logits | None) -> Terms:
        """Return each token's terms, float32."""
        ...


@runtime_checkable
class BatchObjective(Protocol):
    """A function of the losses of a whole batch, for which tokens are projected once more.

    **Attributes:**

    - `needs_base`: as `TokenObjective` has it.
    """

    @property
    def needs_base(self) -> bool:
        """See the class."""
        ...

    def factors(
        self,
        losses: Float[Array, "batch length"],
        counted: Bool[Array, "batch length"],
        sequences: Int[Array, "batch length"],
    ) -> Float[Array, "batch length"]:
        """Return how much each token's loss counts.

        **Arguments:**

        - `losses`: cross-entropies of the targets, float32, without label smoothing.
        - `counted`: whether a token is a target.
        - `sequences`: a number for the sequence that each token of a row belongs to.
        """
        ...


Objective = TokenObjective | BatchObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class DFT:
    """Weigh each token by the probability that the model gives to its target (2508.05629)."""

    needs_base: ClassVar[bool] = False

    def __call__(self, logits: Logits, targets: Targets, base_logits: Logits | None) -> Terms:
        """Return the probabilities as factors."""
        del base_logits
        factor = jax.lax.stop_gradient(jnp.exp(_of_targets(jax.nn.log_softmax(logits), targets)))
        return Terms(factor, jnp.zeros_like(factor))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EAFT:
    """Weigh each token by the entropy of the model over the largest possible one (2601.02151)."""

    needs_base: ClassVar[bool] = False

    def __call__(self, logits: Logits, targets: Targets, base_logits: Logits | None) -> Terms:
        """Return the shares of the largest entropy as factors."""
        del targets, base_logits
        log_probs = jax.lax.stop_gradient(jax.nn.log_softmax(logits))
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
        factor = entropy / math.log(logits.shape[-1])
        return Terms(factor, jnp.zeros_like(factor))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TALR:
    """Weigh tokens by the softmax of −L / τ over the batch, so that hard ones count less.

    The weights minimize Σ w L + τ Σ w ln w over the simplex; the temperature τ is the median of the
    sequences' mean losses (2509.20758). They come with the number of target tokens as a factor, so
    that their mean is 1. Of several microbatches each is a batch.
    """

    needs_base: ClassVar[bool] = False

    def factors(
        self,
        losses: Float[Array, "batch length"],
        counted: Bool[Array, "batch length"],
        sequences: Int[Array, "batch length"],
    ) -> Float[Array, "batch length"]:
        """Return the weights times the number of target tokens; 0 where a token is no target."""
        same = (sequences[:, :, None] == sequences[:, None, :]) & counted[:, None, :]
        tokens = jnp.sum(same, axis=-1)
        means = jnp.sum(jnp.where(same, losses[:, None, :], 0.0), axis=-1) / jnp.maximum(tokens, 1)
        # Of each sequence, its first target stands for it in the median.
        earlier = jnp.tril(jnp.ones((losses.shape[1],) * 2, bool), k=-1)
        first = counted & ~jnp.any(same & earlier, axis=-1)
        median = jnp.nanmedian(jnp.where(first, means, jnp.nan))
        temperature = jnp.where(median > 0, median, 1.0)
        least = jnp.min(losses, where=counted, initial=jnp.inf)
        weights = jnp.where(counted, jnp.exp((least - losses) / temperature), 0.0)
        # The least loss has the weight 1, so only a batch without targets has a sum below it.
        factor = jnp.sum(counted) * weights / jnp.maximum(jnp.sum(weights), 1.0)
        return jax.lax.stop_gradient(factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveTokenMasking:
    """Leave out the targets that surprise the base (2501.14315).

    **Attributes:**

    - `threshold`: the highest perplexity 1 / p_base(y) of a target that counts, 1 or more. The
      number of target tokens that a mean loss is divided by stays that of all.
    """

    needs_base: ClassVar[bool] = True
    threshold: float = 2.5

    def __post_init__(self) -> None:
        if not self.threshold >= 1.0:
            raise UserError(
                f"SelectiveTokenMasking.threshold is {self.threshold}, but no token has a "
                "perplexity below 1: give 1 or more; the paper has 2.5."
            )

    def __call__(self, logits: Logits, targets: Targets, base_logits: Logits | None) -> Terms:
        """Return 1 for each target that counts and 0 for the others."""
        del logits
        assert base_logits is not None
        log_prob = _of_targets(jax.nn.log_softmax(base_logits), targets)
        factor = (log_prob >= -math.log(self.threshold)).astype(jnp.float32)
        return Terms(factor, jnp.zeros_like(factor))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLToBase:
    """Add the divergence of the model from the base at each target token (2602.16093).

    **Attributes:**

    - `weight`: β; 0.1 and 0.5 are usual. 0 needs no base and leaves the plain loss bit for bit.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        validation.check_rate("KLToBase.weight", self.weight)

    @property
    def needs_base(self) -> bool:
        """Whether the divergence counts at all."""
        return self.weight > 0

    def __call__(self, logits: Logits, targets: Targets, base_logits: Logits | None) -> Terms:
        """Return the weighted divergences as additions."""
        if base_logits is None:
            none = jnp.zeros(targets.shape, jnp.float32)
            return Terms(jnp.ones_like(none), none)
        divergence = kl_divergence(base_logits, logits)
        return Terms(jnp.ones_like(divergence), self.weight * divergence)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """The divergence from the base alone, which is measured and not trained on."""

    needs_base: ClassVar[bool] = True

    def __call__(self, logits: Logits, targets: Targets, base_logits: Logits | None) -> Terms:
        """Return the divergences in place of the loss."""
        del targets
        assert base_logits is not None
        divergence = kl_divergence(base_logits, logits)
        return Terms(jnp.zeros_like(divergence), divergence)


def kl_divergence(logits: Logits, other: Logits) -> Float[Array, "*tokens"]:
    """Return KL(p over q) in nats, p the distribution of `logits` and q that of `other`."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _of_targets(log_probs: Logits, targets: Targets) -> Float[Array, "*tokens"]:
    """Return each target's log-probability."""
    # A comparison and a sum stay local where the vocabulary is sharded; a gather would not.
    ids = jax.lax.broadcasted_iota(targets.dtype, log_probs.shape, log_probs.ndim - 1)
    return jnp.sum(jnp.where(ids == targets[..., None], log_probs, 0.0), axis=-1)
