"""The tiny world's words as a SeqIO vocabulary; imports TensorFlow, so import it late.

In gin: `VOCABULARY = @vocabularies.tiny_world()`. Text is words separated by white space:

    WordVocabulary().encode("Q home anna")  # three ids
"""

from collections.abc import Iterable, Sequence

import seqio
import tensorflow as tf

from promot_t5x.tasks.tiny import words as world_words


class WordVocabulary(seqio.Vocabulary):  # type: ignore[misc]  # SeqIO ships no types
    """One id a word: pad 0, EOS 1, unknown 2, then the words of the tiny world.

    `vocab_size` is 416, a multiple of 32; every id is a word, so a network needs no
    further rows. Decoding drops padding and EOS.
    """

    def __init__(self) -> None:
        super().__init__(extra_ids=0)
        self._words = world_words.vocabulary_words()
        self._ids = {word: i for i, word in enumerate(self._words)}
        # A vocabulary may be made while a data set's graph is being traced.
        with tf.init_scope():
            self._table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    tf.constant(self._words), tf.range(len(self._words), dtype=tf.int32)
                ),
                default_value=self.unk_id,
            )

    @property
    def bos_id(self) -> int:
        """The id of the start, which is the padding's."""
        start: int = self.pad_id
        return start

    @property
    def eos_id(self) -> int:
        """The id of the end."""
        return 1

    @property
    def unk_id(self) -> int:
        """The id of a word that the vocabulary lacks."""
        return 2

    @property
    def _base_vocab_size(self) -> int:
        return len(self._words)

    def _encode(self, s: str) -> list[int]:
        return [self._ids.get(word, self.unk_id) for word in s.split()]

    def _decode(self, ids: Iterable[int]) -> str:
        dropped = (self.pad_id, self.eos_id)
        return " ".join(self._words[i] for i in ids if i not in dropped)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        return self._table.lookup(tf.strings.split(s))

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        kept = tf.ragged.boolean_mask(ids, tf.greater(ids, self.eos_id))
        return tf.strings.reduce_join(tf.gather(tf.constant(self._words), kept), -1, separator=" ")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordVocabulary) and self._words == other._words

    def __hash__(self) -> int:
        return hash(self._words)

    @property
    def words(self) -> Sequence[str]:
        """All words by id."""
        return self._words
