"""From SeqIO's examples to T5X's batches, each example behind its own prompt, packed or not.

`models.EncoderDecoderModel.feature_converter_cls` takes the class. A prompt's virtual ids (see
`prompt`) are put in front of an example's inputs before SeqIO packs or pads them; everything after
that is SeqIO's own.
"""

from collections.abc import Mapping
from typing import Any

from promot_t5x.data.lazy import import_seqio, import_tensorflow
from promot_t5x.errors import UserError

seqio: Any = import_seqio()

# Inputs of prompt k have k times this added to their first id. SeqIO's mixtures keep nothing of an
# example but its features, and its trimming nothing beyond their lengths; a first id is kept.
PROMPT_STRIDE = 1 << 20


def text_lengths(lengths: Mapping[str, int] | None, prompt_length: int) -> dict[str, int] | None:
    """Return the token budget of the text in rows of `lengths`, which count the prompt.

    **Arguments:**

    - `lengths`: as this project's engine takes them. None, for which T5X measures the data, stays.
    - `prompt_length`: tokens of the prompt.

    **Returns:** a value for `utils.DatasetConfig.task_feature_lengths`.

    **Raises:** `UserError` where the prompt leaves no token.
    """
    if lengths is None:
        return None
    if lengths["inputs"] <= prompt_length:
        raise UserError(
            f"PROMPT_LENGTH = {prompt_length} leaves no room for text in "
            f"TASK_FEATURE_LENGTHS['inputs'] = {lengths['inputs']}, which includes the prompt."
        )
    return {**lengths, "inputs": lengths["inputs"] - prompt_length}


class PromptFeatureConverter(seqio.EncDecFeatureConverter):  # type: ignore[misc]
    """`seqio.EncDecFeatureConverter`, with a prompt in front of every example.

    Task feature lengths are those of text (see `text_lengths`); the encoder's rows are longer by
    a prompt, so that an example of full length fits one, and packed rows hold what fits.
    """

    def __init__(self, *, vocab_size: int, num_prompts: int, prompt_length: int, **kwargs: Any):
        """Take SeqIO's arguments, and the network's `vocab_size`, `num_prompts`, `prompt_length`.

        Without prompts it is SeqIO's converter.
        """
        super().__init__(**kwargs)
        self._vocab_size = vocab_size
        self._num_prompts = num_prompts
        self._prompt_length = prompt_length if num_prompts else 0

    def _convert_features(self, ds: Any, task_feature_lengths: Mapping[str, int]) -> Any:
        if self._prompt_length:
            ds = seqio.map_over_dataset(self._with_prompt)(ds)
        return super()._convert_features(ds, self._row_lengths(task_feature_lengths))

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Any:
        """Return the lengths of the model's features, the prompt counted."""
        return super().get_model_feature_lengths(self._row_lengths(task_feature_lengths))

    def _row_lengths(self, lengths: Mapping[str, int]) -> dict[str, int]:
        return {**lengths, "inputs": lengths["inputs"] + self._prompt_length}

    def _with_prompt(self, example: Mapping[str, Any]) -> dict[str, Any]:
        tf = import_tensorflow()
        inputs = example["inputs"]
        prompt = inputs[:1] // PROMPT_STRIDE
        check = tf.debugging.assert_less(
            prompt, self._num_prompts, "a task's prompt is beyond NUM_PROMPTS"
        )
        with tf.control_dependencies([check]):
            vectors = prompt * self._prompt_length + tf.range(self._prompt_length)
        text = tf.concat([inputs[:1] % PROMPT_STRIDE, inputs[1:]], 0)
        return {**example, "inputs": tf.concat([self._vocab_size + vectors, text], 0)}
