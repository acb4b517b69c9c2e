"""Runs: what `train`, `promot`, `eval` and `infer` do, from their configuration to their files.

Read in this order: `stages` (a stage as data), `train` (`Trainer.run` is the loop, top to bottom),
then what it uses: `weights` (where parameters come from), `initial_state` (a new or a resumed
stage), `program` (the compiled step), `measurements` (validation, suite, alignment),
`growth` (a larger TRAIN_STEPS), `batch_contents`, `step_log`, `non_finite` and
`metric_writer` (where a step's numbers go), `goodput` (where the time goes), `outlook` (how much is
left of it), `profiling`, `run_directory` (a MODEL_DIR belongs to one configuration). `promot` runs
stages one after the other, `comparison` evaluates what they left. `eval` and `infer` use
checkpoints that are there. `status` reads where a run is, from anywhere.

Public: the functions and classes that users bind in gin: `stages.Stage`, `stages.DatasetConfig`,
`train.train`, `promot.promot`, `promot.Row`, `promot.Comparison`, `eval.evaluate`, `infer.infer`,
`infer.InferConfig`.
"""
