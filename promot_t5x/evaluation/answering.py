"""Answering a fixed set of questions with any weights: one plan of batches, kept as it goes.

The plan is a function of the questions, so that a run that was killed goes on with the batches
that it lacks and gives, bit for bit, what a straight run gives.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import Int32

from promot_t5x.checkpoints import hashing
from promot_t5x.decoding import decoder, likelihood
from promot_t5x.decoding.length_buckets import Batch
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.evaluation.journal import Journal
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network import transformer
from promot_t5x.progress import Progress

# {"ids": [...], "log_probs": [...]} of the hypotheses kept, the best first, without padding; of
# candidates, of the likeliest one, and "candidates": the log-probability of each.
Answer = dict[str, Any]


class Ask(NamedTuple):
    """One question as the model gets it.

    inputs: token ids, the prompt's among them.
    limit: most tokens of an answer; of candidates, of the longest.
    number: what tells its random stream from others'.
    candidates: the answers to choose from; without any, one is decoded.
    """

    inputs: Int32[np.ndarray, " length"]
    limit: int
    number: int
    candidates: tuple[Int32[np.ndarray, " tokens"], ...] = ()


@functools.cache
def shared_decoder(
    module: transformer.Transformer,
    method: decoder.Method,
    batch_size: int,
    eos_id: int,
    batch_sharding: NamedSharding,
) -> decoder.Decoder:
    """The process's one decoder of these settings: stages and rows share what it compiles."""
    return decoder.Decoder(
        module,
        method=method,
        batch_size=batch_size,
        eos_id=eos_id,
        batch_sharding=batch_sharding,
    )


@functools.cache
def shared_scorer(
    module: transformer.Transformer, batch_size: int, batch_sharding: NamedSharding
) -> likelihood.Scorer:
    """Likewise of candidates."""
    return likelihood.Scorer(module, batch_size=batch_size, batch_sharding=batch_sharding)


class Answerer:
    """The batches of a set of questions, and the programs that answer them."""

    def __init__(
        self,
        model: EncoderDecoderModel,
        method: decoder.Method,
        batch_size: int,
        partitioner: Partitioner,
        *,
        kept: int = 1,
    ):
        """**Arguments:**

        - `method`: of decoding, where a question comes without candidates.
        - `kept`: hypotheses that an answer has, at most those of `method`.
        """
        sharding = partitioner.sharding(("batch",))
        eos_id = model.vocabulary.eos_id
        self._decoder = shared_decoder(model.module, method, batch_size, eos_id, sharding)
        self._scorer = shared_scorer(model.module, batch_size, sharding)
        self._kept = kept
        self._settings = f"{method} {batch_size} {kept}"
        self._asks: Sequence[Ask] = ()
        self._decoded: list[Batch] = []
        self._scored: list[Batch] = []

    def plan(self, asks: Sequence[Ask]) -> None:
        """Take in the questions that `answers` answers from now on."""
        chosen = np.array([bool(ask.candidates) for ask in asks], bool)

        def cut(program: decoder.Decoder | likelihood.Scorer, rows: np.ndarray) -> list[Batch]:
            lengths = [len(asks[row].inputs) for row in rows]
            batches = program.plan(lengths, [asks[row].limit for row in rows])
            return [batch._replace(rows=rows[batch.rows]) for batch in batches]

        self._asks = asks
        self._decoded = cut(self._decoder, np.flatnonzero(~chosen))
        self._scored = cut(self._scorer, np.flatnonzero(chosen))

    @property
    def programs(self) -> list[tuple[int, int]]:
        """(input length, output length) of each program that the plan needs, longest first."""

        def shapes(batches: Sequence[Batch]) -> list[tuple[int, int]]:
            return list(dict.fromkeys((b.input_length, b.output_length) for b in batches))

        return [*shapes(self._decoded), *shapes(self._scored)]

    @property
    def compilations(self) -> list[tuple[int, int]]:
        """(input length, output length) of each program that this process has compiled so far."""
        return [*self._decoder.compilations, *self._scorer.compilations]

    def identity(self, whose: Mapping[str, Any]) -> str:
        """A hash of the plan and of whose answers they are, for a `Journal`."""
        shapes = [
            (ask.limit, ask.number, len(ask.inputs), *map(len, ask.candidates))
            for ask in self._asks
        ]
        said = json.dumps([self._settings, self.programs, dict(whose), shapes], sort_keys=True)
        tokens = [part for ask in self._asks for part in (ask.inputs, *ask.candidates)]
        return hashing.hex_digest(said.encode() + np.concatenate(tokens).tobytes())

    def answers(
        self, params: Any, label: str, journal: Journal | None = None
    ) -> tuple[list[Answer], int]:
        """Answer every question with these parameters, which lie on the mesh.

        **Arguments:**

        - `journal`: has the batches that are answered already, and gets the others.

        **Returns** an answer a question, and how many of them were made now.
        """
        plan = [*self._decoded, *self._scored]
        found: list[Answer | None] = [None] * len(self._asks)

        def take(number: int, answers: Sequence[Answer]) -> None:
            for row, answer in zip(plan[number].rows, answers, strict=True):
                assert found[row] is None, f"question {row} was answered twice"
                found[row] = answer

        before = {} if journal is None else first_process_says(journal.read)
        for number, answers in before.items():
            take(int(number), answers)
        done = before_now = sum(answer is not None for answer in found)
        progress = Progress(label, len(found), done)
        numbers = [n for n in range(len(plan)) if n not in {int(known) for known in before}]
        for number, answers in self._run(params, numbers):
            if journal is not None and jax.process_index() == 0:
                journal.add(number, answers)
            take(number, answers)
            done += len(answers)
            progress.update(done)
        progress.close()
        complete = [answer for answer in found if answer is not None]
        assert len(complete) == len(found), f"{len(found) - len(complete)} were not answered"
        return complete, done - before_now

    def _run(self, params: Any, numbers: Sequence[int]) -> Iterator[tuple[int, list[Answer]]]:
        """Answer the batches of these numbers."""
        plan = [*self._decoded, *self._scored]
        inputs = [ask.inputs for ask in self._asks]
        random = np.array([ask.number for ask in self._asks], np.int32)
        decoded = [n for n in numbers if n < len(self._decoded)]
        results = self._decoder.run(params, inputs, [plan[n] for n in decoded], numbers=random)
        for number, (_, decodes) in zip(decoded, results, strict=True):
            rows = zip(decodes.ids, decodes.scores, strict=True)
            yield number, [self._hypotheses(ids, scores) for ids, scores in rows]
        scored = [n for n in numbers if n >= len(self._decoded)]
        candidates = [ask.candidates for ask in self._asks]
        scores = self._scorer.run(params, inputs, candidates, [plan[n] for n in scored])
        for number, (batch, found) in zip(scored, scores, strict=True):
            chosen = zip(batch.rows, found, strict=True)
            yield number, [_likeliest(candidates[row], of) for row, of in chosen]

    def _hypotheses(self, ids: np.ndarray, scores: np.ndarray) -> Answer:
        # Hypotheses come worst first.
        best = range(len(ids) - 1, len(ids) - 1 - self._kept, -1)
        return {
            "ids": [np.trim_zeros(ids[i], "b").tolist() for i in best],
            "log_probs": [float(scores[i]) for i in best],
        }


def _likeliest(candidates: Sequence[np.ndarray], scores: np.ndarray) -> Answer:
    known = scores[: len(candidates)]
    best = int(np.argmax(known))
    return {
        "ids": [candidates[best].tolist()],
        "log_probs": [float(known[best])],
        "candidates": known.tolist(),
    }


def first_process_says(make: Callable[[], Any]) -> Any:
    """What `make` returns in the first process, as JSON has it, in every process.

    Only that process is sure to see what it wrote.
    """
    if jax.process_count() == 1:
        return make()
    text = json.dumps(make()).encode() if jax.process_index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    data = np.frombuffer(text.ljust(size, b"\0"), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes())
