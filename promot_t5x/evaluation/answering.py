"""Answer a fixed set of questions with any weights: one plan of batches, kept as it goes.

The plan is a function of the questions, so that a run that was killed resumes with the batches
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
from promot_t5x.decoding.search import Method
from promot_t5x.distributed import processes
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.evaluation.journal import Journal
from promot_t5x.models.model import Model
from promot_t5x.network.parameters import Module
from promot_t5x.progress import Progress

# {"ids": [...], "log_probs": [...]} of the hypotheses kept, the best first, without padding. Of
# candidates, these of the likeliest one; and of each its log-probability, "candidates", and
# whether greedy decoding would say it, "greedy".
Answer = dict[str, Any]


class EncodedQuestion(NamedTuple):
    """One question as the model gets it.

    **Attributes:**

    - `inputs`: token ids, the prompt's among them.
    - `limit`: most tokens of an answer; of candidates, of the longest.
    - `number`: tells its random stream from those of others.
    - `candidates`: the answers to choose from; without any, one is decoded.
    - `given`: how many ids the candidates begin with whose likelihood does not count.
    """

    inputs: Int32[np.ndarray, " length"]
    limit: int
    number: int
    candidates: tuple[Int32[np.ndarray, " tokens"], ...] = ()
    given: int = 0


@functools.cache
def shared_decoder(
    module: Module,
    method: Method,
    batch_size: int,
    eos_id: int,
    start_id: int | None,
    batch_sharding: NamedSharding,
) -> decoder.Decoder:
    """Return the process's one decoder of these settings: stages and rows share its programs."""
    return decoder.Decoder(
        module,
        method=method,
        batch_size=batch_size,
        eos_id=eos_id,
        start_id=start_id,
        batch_sharding=batch_sharding,
    )


@functools.cache
def shared_scorer(
    module: Module,
    batch_size: int,
    start_id: int | None,
    batch_sharding: NamedSharding,
) -> likelihood.Scorer:
    """Return the process's one scorer of candidates with these settings."""
    return likelihood.Scorer(
        module, batch_size=batch_size, start_id=start_id, batch_sharding=batch_sharding
    )


class Answerer:
    """The batches of a set of questions, and the programs that answer them.

    **Arguments:**

    - `model`: the network with its vocabulary.
    - `method`: of decoding, where a question comes without candidates.
    - `batch_size`: questions answered together.
    - `partitioner`: the mesh.
    - `kept`: hypotheses that an answer has, at most those of `method`.
    """

    def __init__(
        self,
        model: Model,
        method: Method,
        batch_size: int,
        partitioner: Partitioner,
        *,
        kept: int = 1,
    ):
        sharding = partitioner.sharding(("batch",))
        eos_id, start_id = model.vocabulary.eos_id, model.start_id
        self._decoder = shared_decoder(model.module, method, batch_size, eos_id, start_id, sharding)
        self._scorer = shared_scorer(model.module, batch_size, start_id, sharding)
        self._kept = kept
        self._settings = f"{method} {batch_size} {kept}"
        self._questions: Sequence[EncodedQuestion] = ()
        self._decoded: list[Batch] = []
        self._scored: list[Batch] = []

    def plan(self, questions: Sequence[EncodedQuestion]) -> None:
        """Take in the questions that `answers` answers from now on."""
        chosen = np.array([bool(question.candidates) for question in questions], bool)

        def cut(program: decoder.Decoder | likelihood.Scorer, rows: np.ndarray) -> list[Batch]:
            lengths = [len(questions[row].inputs) for row in rows]
            batches = program.plan(lengths, [questions[row].limit for row in rows])
            return [batch._replace(rows=rows[batch.rows]) for batch in batches]

        self._questions = questions
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

    def identity(self, weights: Mapping[str, Any]) -> str:
        """Return a hash of the plan and of the weights that answer it, for a `Journal`."""
        shapes = [
            (each.limit, each.number, each.given, len(each.inputs), *map(len, each.candidates))
            for each in self._questions
        ]
        described = json.dumps(
            [self._settings, self.programs, dict(weights), shapes], sort_keys=True
        )
        tokens = [part for each in self._questions for part in (each.inputs, *each.candidates)]
        return hashing.hex_digest(described.encode() + np.concatenate(tokens).tobytes())

    def answers(
        self, params: Any, label: str, journal: Journal | None = None
    ) -> tuple[list[Answer], int]:
        """Answer every question with these parameters.

        **Arguments:**

        - `params`: nested dict of arrays that lie on the mesh.
        - `label`: what the line of progress starts with.
        - `journal`: has the batches that are answered already, and gets the others.

        **Returns:** one answer per question, and how many of them were made now.
        """
        plan = [*self._decoded, *self._scored]
        found: list[Answer | None] = [None] * len(self._questions)

        def take(number: int, answers: Sequence[Answer]) -> None:
            for row, answer in zip(plan[number].rows, answers, strict=True):
                assert found[row] is None, f"question {row} was answered twice"
                found[row] = answer

        before = {} if journal is None else primary_process_result(journal.read)
        for number, answers in before.items():
            take(int(number), answers)
        done = before_now = sum(answer is not None for answer in found)
        progress = Progress(label, len(found), done)
        numbers = [n for n in range(len(plan)) if n not in {int(known) for known in before}]
        for number, answers in self._run(params, numbers):
            if journal is not None and processes.is_primary():
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
        inputs = [question.inputs for question in self._questions]
        random = np.array([question.number for question in self._questions], np.int32)
        decoded = [n for n in numbers if n < len(self._decoded)]
        results = self._decoder.run(params, inputs, [plan[n] for n in decoded], numbers=random)
        for number, (_, decodes) in zip(decoded, results, strict=True):
            rows = zip(decodes.ids, decodes.scores, strict=True)
            yield number, [self._hypotheses(ids, scores) for ids, scores in rows]
        scored = [n for n in numbers if n >= len(self._decoded)]
        candidates = [question.candidates for question in self._questions]
        given = [question.given for question in self._questions]
        scores = self._scorer.run(params, inputs, candidates, [plan[n] for n in scored], given)
        for number, (batch, found) in zip(scored, scores, strict=True):
            chosen = zip(batch.rows, found.log_probs, found.greedy, strict=True)
            yield number, [_likeliest(candidates[row], *of) for row, *of in chosen]

    def _hypotheses(self, ids: np.ndarray, scores: np.ndarray) -> Answer:
        # Hypotheses come worst first.
        best = range(len(ids) - 1, len(ids) - 1 - self._kept, -1)
        return {
            "ids": [self._decoder.tokens(ids[i]).tolist() for i in best],
            "log_probs": [float(scores[i]) for i in best],
        }


def _likeliest(
    candidates: Sequence[np.ndarray], log_probs: np.ndarray, greedy: np.ndarray
) -> Answer:
    known = log_probs[: len(candidates)]
    best = int(np.argmax(known))
    return {
        "ids": [candidates[best].tolist()],
        "log_probs": [float(known[best])],
        "candidates": known.tolist(),
        "greedy": greedy[: len(candidates)].tolist(),
    }


def primary_process_result(make: Callable[[], Any]) -> Any:
    """Return in every process what `make` returns in the primary one, as JSON has it.

    Only that process is sure to see what it wrote.

    **Arguments:**

    - `make`: called in the primary process alone.
    """
    if jax.process_count() == 1:
        return make()
    text = json.dumps(make()).encode() if processes.is_primary() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    data = np.frombuffer(text.ljust(size, b"\0"), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes())
