"""The tiny world: a made-up language to pretrain, fine-tune and evaluate on in minutes.

It exists for a demonstration that needs no download: a model of a million parameters,
pretrained on it, answers questions after one written demonstration, loses that ability when
fine-tuned on `tiny_rte`, and shows what keeps it. Synthetic and tiny: an illustration, no
evidence about large models.

Forty people, 24 verbs of three classes, 40 nouns in eight categories, four facts a person,
and invented languages A, B and C that translate verbs and nouns. Words are real words so that
rows can be read, but what they mean is drawn from a seed.

`docs/demo.md` describes every family with examples, and what pretraining has seen.
"""
