"""Evaluation: a fixed set of questions, answered by any weights, scored, and kept on disk.

Read in this order: `eval_config` (what is evaluated, and how answers are decoded), `question_set`
(the tasks' questions as a model gets them), `answering` (one plan of batches over all of them,
with the `journal` that lets a killed evaluation resume), `scoring` (from answers to scores and
records), `records` (the files that an evaluation leaves, and reading them back) and `evaluator`,
which puts these together. `validation_loss` measures the teacher-forced loss on the same rows, and
`drift` how far a model has gone from its base there.

Public: `EvalConfig` and `Evaluator` of `evaluator` (users bind `evaluate.EvalConfig` in gin), and
`find` and `Recorded` of `records`.
"""
