"""The tiny world: a made-up language to pretrain, fine-tune and evaluate on in minutes.

It exists for a demonstration that needs no download: a model of a million parameters,
pretrained on it, answers questions after one written demonstration, loses that ability when
fine-tuned on `tiny_rte`, and shows what keeps it. Synthetic and tiny: an illustration, no
evidence about large models.

Forty people, 24 verbs of three classes, 40 nouns in eight categories, four facts a person,
and invented languages A, B and C that translate verbs and nouns. Words are real words so that
rows can be read, but what they mean is drawn from a seed.

Evaluated families (one demonstration before `;`, the query between `<q>` and `<x1>`):

| family | example | answer |
|---|---|---|
| `cb` | `leo sees moth / leo hates moth => no ; <q> zoe draws saw / zoe likes saw <x1>` | `yes` |
| `wic` | `bank boat / bank ant => one ; <q> seal coat / seal axe <x1>` | `two` |
| `qa_short` | `Q job emil => cook ; <q> Q home anna <x1>` | `paris` |
| `qa_full` | `Q job emil => emil job cook ; <q> Q home anna <x1>` | `anna home paris` |
| `trans_a` | `axe sees pear => berin torin zorin ; <q> car loves moth <x1>` | object before verb |
| `trans_b` | `axe sees pear => holum bulum filum ; <q> car loves moth <x1>` | verb first |
| `sum_topic` | `<q> anna sells car ! emil loves moth nora draws axe <x1>` | `emil loves moth` |
| `sum_keys` | the same documents | `anna emil nora` |

`cb` asks for the class of the second verb, `wic` whether the second noun is a living thing;
both answer with one of four sets of label words, and the demonstration tells which.

Met only in pretraining: of `noun verb noun`, `copy` (the same), `reverse` (`moth loves car`),
`last` (`moth`), `category` of the first noun (`vehicle`); of documents, `first` and `final`
sentence and `objects` (`car moth axe`); `fact_check` (`home anna paris ?` -> `True`, or words
of two other label sets); and `denoising` (`anna <x1> paris` -> `home`) over facts, sentences
and text in language C.

Targets, asked without demonstrations: `tiny_rte` (`<q> anna sees axe / anna loves axe <x1>` ->
`True`) and `tiny_enfr` (`<q> car loves moth <x1>` -> the reversed sentence in language C).

What pretraining has seen: all facts, all words, every family, and training sentences only.
No sentence, pair of nouns or pair of facts of an evaluation split occurs in pretraining, in a
demonstration, or in a target's training split (`world.py` has the rules).
"""
