"""A user's own tasks, as MIXTURE_OR_TASK_MODULE names this file: small, and quick to tokenize.

`run_signs` and `run_ends` ask two different things about the same numbers, with the byte
vocabulary of `models/byte_vocabulary.gin`; `run_pair` mixes them.
"""

import functools

import seqio
import tensorflow as tf

VOCABULARY = seqio.ByteVocabulary(extra_ids=125)
SIZES = {"train": 48, "validation": 8}


def rows(split, shuffle_files, seed=None, *, question, answers):
    del shuffle_files, seed
    start = 0 if split == "train" else SIZES["train"]
    numbers = range(start, start + SIZES[split])
    return tf.data.Dataset.from_tensor_slices(
        {
            "inputs": [f"{question} {number * 7}" for number in numbers],
            "targets": [answers[number * 7 % len(answers)] for number in numbers],
        }
    )


def share_equal(targets, predictions):
    pairs = zip(targets, predictions, strict=True)
    return {"share_equal": 100 * sum(a == b for a, b in pairs) / len(targets)}


def add(name, question, answers, vocabulary=VOCABULARY):
    source = functools.partial(rows, question=question, answers=answers)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(source, splits=list(SIZES), num_input_examples=SIZES),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        output_features={
            name: seqio.Feature(vocabulary=vocabulary) for name in ("inputs", "targets")
        },
        metric_fns=[share_equal],
    )


add("run_signs", "sign", ("even", "odd"))
add("run_ends", "end", ("a", "b", "c"))
add("run_other_vocabulary", "sign", ("even", "odd"), seqio.ByteVocabulary(extra_ids=5))
seqio.MixtureRegistry.add("run_pair", [("run_signs", 2.0), ("run_ends", 1.0)])
