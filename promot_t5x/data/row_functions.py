"""What a `tf.data` pipeline does to each row, and how it is done to many rows at once."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from promot_t5x.data.lazy import import_tensorflow

# Data sets of `tf.data` that have an element for each of another one, in their order.
_ELEMENT_BY_ELEMENT = {"_MapDataset", "_ParallelMapDataset", "_OptionsDataset", "_PrefetchDataset"}
# Operations that may do something else for the same input another time.
_REMEMBERING = {
    "PyFunc", "EagerPyFunc", "Multinomial", "RandomGamma", "RandomPoissonV2", "RandomShuffle",
    "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal",
}  # fmt: skip
# Operations on texts that act on each by itself. TensorFlow itself would loop over the rows.
_OF_EACH_TEXT = (
    "AsString", "RegexReplace", "StaticRegexFullMatch", "StaticRegexReplace", "StringLength",
    "StringLower", "StringStrip", "StringToNumber", "StringUpper",
)  # fmt: skip
# Operations that make of many rows at once what they make of each.
_OF_MANY = {
    *_OF_EACH_TEXT, "Add", "AddV2", "All", "Any", "ArgMax", "Assert", "Cast", "Const", "Equal",
    "GatherV2", "Greater", "GreaterEqual", "Identity", "If", "Less", "LessEqual", "LogicalAnd",
    "LogicalNot", "LogicalOr", "Mul", "NoOp", "NotEqual", "Pack", "Placeholder", "PyFuncStateless",
    "Range", "SelectV2", "StatelessIf", "StringJoin", "Sub",
}  # fmt: skip


class Step(NamedTuple):
    """A function of a row's values: its new ones or, of a filter, whether the row stays."""

    function: Any
    is_filter: bool


def steps_between(source: Any, data: Any) -> list[Step] | None:
    """Return the steps that make a data set of another, the first one first.

    None where more than functions of one row each, which remember nothing, stand between them.

    **Arguments:**

    - `source`, `data`: `tf.data.Dataset`s, the second made of the first.
    """
    steps: list[Step] = []
    while data is not source:
        inputs, kind = data._inputs(), type(data).__name__
        if len(inputs) != 1 or kind not in {*_ELEMENT_BY_ELEMENT, "_FilterDataset"}:
            return None
        if kind == "_FilterDataset":
            steps.insert(0, Step(data._predicate.function, True))
        elif hasattr(data, "_map_func"):
            steps.insert(0, Step(data._map_func.function, False))
        (data,) = inputs
    return steps if _REMEMBERING.isdisjoint(_operations(steps)) else None


def can_take_many(steps: Sequence[Step], source: Any) -> bool:
    """Whether `of_many` takes these steps, and the rows of `source`, which may have no lists."""
    columns = getattr(source, "_tensors", None)
    if columns is None or any(column.dtype == import_tensorflow().variant for column in columns):
        return False
    return _operations(steps) <= _OF_MANY


def of_many(steps: Sequence[Step], spec: Any, source: Any) -> Any:
    """Apply steps to all rows in one go, where `can_take_many`: a tenth of the time.

    **Arguments:**

    - `spec`: the structure of a row afterwards.
    - `source`: the data set of the rows.
    """
    tf = import_tensorflow()
    _register_converters()
    values = list(source._tensors)
    for step in steps:

        def of_row(row: list[Any], function: Any = step.function) -> list[Any]:
            return tf.nest.flatten(function(*row), expand_composites=True)  # type: ignore[no-any-return]

        made = tf.vectorized_map(of_row, values)
        values = [tf.boolean_mask(each, made[0]) for each in values] if step.is_filter else made
    return tf.nest.pack_sequence_as(spec, values)


def _operations(steps: Sequence[Step]) -> set[str]:
    """Name what the steps do, and the functions within them."""

    def of_each() -> Iterator[Any]:
        for step in steps:
            graph = step.function.graph.as_graph_def()
            yield graph.node
            yield from (each.node_def for each in graph.library.function)

    return {node.op for node in itertools.chain.from_iterable(of_each())}


def _register_converters() -> None:
    """Tell `tf.vectorized_map` that operations on texts take many texts as they are."""
    from tensorflow.python.ops.parallel_for import pfor

    for names, converter in (
        (_OF_EACH_TEXT, pfor._convert_cwise),
        (("StringJoin",), _convert_join),
    ):
        for name in names:
            # A later TensorFlow, or an earlier call of this, may have a converter.
            if name not in pfor._pfor_converter_registry:
                pfor.RegisterPFor(name)(converter)


def _convert_join(made_of: Any) -> Any:
    """Join the texts of many rows; unlike other operations, this one takes only equal shapes."""
    from tensorflow.python.ops.parallel_for import pfor

    tf = import_tensorflow()
    made_of.expanddim_inputs_for_broadcast()
    parts = [each.t for each in made_of.inputs]
    several = [part for part in parts if part.shape.rank != 0]
    if any(part.shape.rank != 1 for part in several):
        shape = tf.shape(several[0])
        for part in several[1:]:
            shape = tf.broadcast_dynamic_shape(shape, tf.shape(part))
        parts = [tf.broadcast_to(part, shape) for part in parts]
    separator = made_of.get_attr("separator").decode()
    return pfor.wrap(tf.strings.join(parts, separator), True)
