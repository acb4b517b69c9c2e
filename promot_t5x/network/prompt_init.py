"""What a new prompt starts from: noise, words of the vocabulary, class labels or a text.

Each initializer is a frozen value that gin can bind, draws float32 vectors
[num_prompts, prompt_length, emb_dim], and describes itself as plain data for a checkpoint to
record. They are those of prompt tuning (Lester et al. 2021, arXiv:2104.08691). A prompt that
starts from a file needs none: `prompt_file` reads it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float

from promot_t5x.errors import UserError

Shape = tuple[int, int, int]
Prompts = Float[np.ndarray, "num_prompts prompt_length emb_dim"]
Table = Float[Array | np.ndarray, "vocab emb_dim"]


class Vocabulary(Protocol):
    """Anything with SeqIO's `encode`; only initializers with texts use one."""

    def encode(self, s: str) -> Sequence[int]:
        """Return the ids of a text, without an end."""
        ...


@runtime_checkable
class PromptInit(Protocol):
    """An initializer.

    - `rng`: a jax random key; the same key draws the same prompts.
    - `shape`: (num_prompts, prompt_length, emb_dim).
    - `embedding`: the base's table, [rows, emb_dim], where the initializer reads one.
    - `vocabulary`: to encode texts, where there are any.
    """

    def __call__(
        self,
        rng: jax.Array,
        shape: Shape,
        *,
        embedding: Table | None = None,
        vocabulary: Any = None,
    ) -> Prompts:
        """Draw a prompt table."""
        ...

    def describe(self) -> dict[str, Any]:
        """Its name and settings as plain data, fit for JSON."""
        ...


@dataclasses.dataclass(frozen=True)
class _Described:
    def describe(self) -> dict[str, Any]:
        """Its name and settings as plain data, fit for JSON."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"name": type(self).__name__, **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, _Described):
        return value.describe()
    return list(value) if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(_Described):
    """Uniform in +-`scale`."""

    scale: float = 0.5

    def __call__(
        self,
        rng: jax.Array,
        shape: Shape,
        *,
        embedding: Table | None = None,
        vocabulary: Any = None,
    ) -> Prompts:
        """Draw every entry uniformly."""
        del embedding, vocabulary
        drawn = jax.random.uniform(rng, shape, minval=-self.scale, maxval=self.scale)
        return np.asarray(drawn)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledVocabulary(_Described):
    """Embeddings drawn from the vocabulary's first `population` rows, its commonest tokens.

    No row comes twice in a prompt, unless the prompt is longer than the population. None is
    prompt-tuning's 5000, or the whole of a smaller table; a population beyond the table's rows is
    an error, as is one of 0.
    """

    population: int | None = None

    def __call__(
        self,
        rng: jax.Array,
        shape: Shape,
        *,
        embedding: Table | None = None,
        vocabulary: Any = None,
    ) -> Prompts:
        """Draw rows of the embedding table."""
        del vocabulary
        table = _table(self, embedding, shape)
        population = min(5000, table.shape[0]) if self.population is None else self.population
        if not 1 <= population <= table.shape[0]:
            raise UserError(
                f"SampledVocabulary.population is {population}; it must be in 1 ... "
                f"{table.shape[0]}, the rows of the base's embedding."
            )
        with_replacement = shape[1] > population
        draws = [
            jax.random.choice(key, population, (shape[1],), replace=with_replacement)
            for key in jax.random.split(rng, shape[0])
        ]
        return np.stack([_rows(table, np.asarray(ids)) for ids in draws])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassLabels(_Described):
    """A label's embedding a position, the mean over its tokens; the rest from `fallback`.

    Every prompt starts with the same labels. More labels than positions are an error, and so is
    a label that encodes to nothing.
    """

    labels: Sequence[str]
    fallback: PromptInit = SampledVocabulary()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))

    def __call__(
        self,
        rng: jax.Array,
        shape: Shape,
        *,
        embedding: Table | None = None,
        vocabulary: Any = None,
    ) -> Prompts:
        """Look the labels up, and fill the rest from `fallback`."""
        table = _table(self, embedding, shape)
        if len(self.labels) > shape[1]:
            raise UserError(
                f"ClassLabels has {len(self.labels)} labels for a prompt of {shape[1]} vectors: "
                "lengthen the prompt or name fewer labels."
            )
        prompts = self.fallback(rng, shape, embedding=embedding, vocabulary=vocabulary).copy()
        for position, label in enumerate(self.labels):
            prompts[:, position] = _embed(self, table, vocabulary, label).mean(axis=0)
        return prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedText(_Described):
    """The embeddings of a text's tokens, repeated or cut to the prompt's length."""

    text: str

    def __call__(
        self,
        rng: jax.Array,
        shape: Shape,
        *,
        embedding: Table | None = None,
        vocabulary: Any = None,
    ) -> Prompts:
        """Look the text's tokens up."""
        del rng
        rows = _embed(self, _table(self, embedding, shape), vocabulary, self.text)
        prompt = np.resize(rows, shape[1:])
        return np.broadcast_to(prompt, shape).copy()


def _table(init: _Described, embedding: Table | None, shape: Shape) -> Table:
    name = type(init).__name__
    if embedding is None:
        raise UserError(f"{name} reads the base's embedding, and there is no base: name one.")
    if embedding.shape[1] != shape[2]:
        raise UserError(
            f"{name} was given an embedding of shape {tuple(embedding.shape)} for prompts of "
            f"shape {shape}: their last sizes must be equal."
        )
    return embedding


def _rows(table: Table, ids: np.ndarray) -> Float[np.ndarray, "length emb_dim"]:
    return np.asarray(table[ids]).astype(np.float32)


def _embed(
    init: _Described, table: Table, vocabulary: Any, text: str
) -> Float[np.ndarray, "length emb_dim"]:
    name = type(init).__name__
    if vocabulary is None:
        raise UserError(f"{name} encodes {text!r} and was given no vocabulary.")
    ids = np.asarray(vocabulary.encode(text), np.int32)
    if not ids.size:
        raise UserError(f"{name}: the text {text!r} encodes to no token.")
    if ids.max() >= table.shape[0]:
        raise UserError(
            f"{name}: {text!r} encodes to the id {ids.max()}, and the base's embedding has "
            f"{table.shape[0]} rows: the vocabulary is another model's."
        )
    return _rows(table, ids)
