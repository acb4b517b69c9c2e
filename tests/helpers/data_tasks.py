"""A user's module as MIXTURE_OR_TASK_MODULE would name it: SeqIO tasks and mixtures."""

import seqio
import tensorflow as tf

TEMPLATE = "say {}"
SIZES = {"train": 30, "validation": 7}
VOCABULARY = seqio.ByteVocabulary(extra_ids=5)


def rows(split, shuffle_files, seed=None):
    del shuffle_files, seed
    numbers = tf.data.Dataset.range(SIZES[split])
    return numbers.map(
        lambda n: {"inputs": tf.strings.as_string(n * n * n), "targets": tf.strings.as_string(n)}
    )


def nothing(split, shuffle_files, seed=None):
    return rows("train", shuffle_files, seed).take(0)


def template(dataset):
    before, after = TEMPLATE.split("{}")
    return dataset.map(lambda row: {**row, "inputs": before + row["inputs"] + after})


def cut(dataset, sequence_length):
    return dataset.map(lambda row: {**row, "inputs": row["inputs"][: sequence_length["inputs"]]})


@seqio.map_over_dataset(num_seeds=1)
def sprinkle(row, seed):
    noise = tf.random.stateless_uniform([3], seed, 10, 90, tf.int32)
    return {**row, "inputs": tf.concat([noise, row["inputs"]], axis=0)}


def add(name, *steps, source=rows, vocabulary=VOCABULARY, tokens=True):
    """Register a task `name` with these steps between tokenizing and the EOS."""
    feature = seqio.Feature(vocabulary=vocabulary)
    before = [seqio.preprocessors.tokenize] if tokens else []
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(source, splits=list(SIZES)),
        preprocessors=[template, *before, *steps, seqio.preprocessors.append_eos_after_trim],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[],
    )


add("cubes")
add("cubes_again")
add("cubes_cut", cut)
add("cubes_noisy", sprinkle)
add("cubes_none", source=nothing)
add("cubes_other_vocabulary", vocabulary=seqio.ByteVocabulary())
add("cubes:odd#name")
seqio.MixtureRegistry.add("zz_pair", [("cubes", 1.0), ("cubes_again", 3.0)])
seqio.MixtureRegistry.add("cubes_nested", [("zz_pair", 2.0), ("cubes_noisy", lambda task: 6.0)])
seqio.MixtureRegistry.add("cubes_idle", [("cubes", 1.0), ("cubes_again", 0.0)])
