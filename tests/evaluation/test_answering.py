"""Plans of batches kept on disk: what is answered is not answered again, whatever happens."""

import numpy as np
import pytest
from engine_helpers import one_device_mesh, random_params, tiny_model
from etils import epath

from promot_t5x import decoding
from promot_t5x.evaluation.answering import Answerer, EncodedQuestion
from promot_t5x.evaluation.journal import Journal


@pytest.fixture(scope="module")
def model():
    return tiny_model(num_encoder_layers=1, num_decoder_layers=1)


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.fixture(scope="module")
def asks():
    """Twenty questions of two tasks: decoded answers of three tokens or six, and candidates."""
    rng = np.random.default_rng(0)

    def ids(length):
        return rng.integers(3, 1000, length).astype(np.int32)

    labels = (ids(2), ids(3))
    return [
        EncodedQuestion(
            ids(n), limit=(3, 6)[i % 2], number=i, candidates=labels if i % 5 == 0 else ()
        )
        for i, n in enumerate(rng.integers(4, 30, 20))
    ]


def answerer(model, asks, **settings):
    made = Answerer(model, decoding.Sampling(seed=1), 4, one_device_mesh(), **settings)
    made.plan(asks)
    return made


class StopError(Exception):
    pass


class Impatient(Journal):
    """Is interrupted when it has been given so many batches."""

    patience = 2

    def add(self, batch, answers):
        if self.patience == 0:
            raise StopError
        self.patience -= 1
        super().add(batch, answers)


def test_a_plan_that_was_interrupted_goes_on_where_it_was(model, params, asks, tmp_path):
    wanted, made = answerer(model, asks).answers(params, "straight")
    assert made == 20
    assert all(len(answer["ids"]) == 1 for answer in wanted)
    assert [i for i, answer in enumerate(wanted) if "candidates" in answer] == [0, 5, 10, 15]
    program = answerer(model, asks)
    assert {output for _, output in program.programs} == {6}
    assert sorted(program.programs) == sorted(program.compilations)
    path, identity = epath.Path(tmp_path / "partial"), program.identity({})
    for launch in range(2):
        with pytest.raises(StopError):
            program.answers(params, "interrupted", Impatient(path, identity))
        assert len(path.read_text().splitlines()) == 1 + 2 * (launch + 1)
        # What a kill leaves of a line that it interrupts.
        path.write_text(path.read_text() + '{"batch": 0, "answ')
    found, made = program.answers(params, "again", Journal(path, identity))
    # Batches hold four at most, and at least one.
    assert found == wanted
    assert 4 <= made <= 16
    assert program.answers(params, "done", Journal(path, identity)) == (wanted, 0)
    Journal(path, identity).remove()
    assert not path.exists()


def test_answers_to_other_questions_or_of_other_weights_are_not_taken_up(
    model, params, asks, tmp_path
):
    path = epath.Path(tmp_path / "partial")
    program = answerer(model, asks)
    whose = {"checkpoint": {"hash": "a"}}
    wanted, _ = program.answers(params, "first", Journal(path, program.identity(whose)))
    assert program.answers(params, "same", Journal(path, program.identity(whose))) == (wanted, 0)
    others = [
        (program, {"checkpoint": {"hash": "b"}}),
        (answerer(model, [asks[0]._replace(limit=4), *asks[1:]]), whose),
        (answerer(model, [asks[0]._replace(inputs=asks[1].inputs), *asks[1:]]), whose),
    ]
    identities = {program.identity(whose), *(p.identity(w) for p, w in others)}
    assert len(identities) == 4
    again, made = program.answers(
        params, "other", Journal(path, others[0][0].identity(others[0][1]))
    )
    assert (again, made) == (wanted, 20)


def test_an_answer_depends_on_no_other_question(model, params, asks):
    wanted, _ = answerer(model, asks).answers(params, "all")
    order = np.random.default_rng(1).permutation(len(asks))[:9]
    found, _ = answerer(model, [asks[i] for i in order]).answers(params, "some")
    for i, answer in zip(order, found, strict=True):
        assert answer["ids"] == wanted[i]["ids"]
        np.testing.assert_allclose(answer["log_probs"], wanted[i]["log_probs"], atol=1e-4)


def test_every_hypothesis_is_kept_if_asked_the_best_first(model, params, asks):
    plain = [ask._replace(candidates=()) for ask in asks[:4]]
    best = Answerer(model, decoding.BeamSearch(), 4, one_device_mesh())
    best.plan(plain)
    all_kept = Answerer(model, decoding.BeamSearch(), 4, one_device_mesh(), kept=4)
    all_kept.plan(plain)
    singles, _ = best.answers(params, "best")
    everything, _ = all_kept.answers(params, "all")
    for single, several in zip(singles, everything, strict=True):
        assert len(several["ids"]) == 4
        assert several["ids"][0] == single["ids"][0]
        assert several["log_probs"] == sorted(several["log_probs"], reverse=True)
