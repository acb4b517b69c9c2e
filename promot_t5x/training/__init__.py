"""What a training step does with a batch, and the state that it does it to.

Read in this order: `state` (the trainable and the frozen tree, the optimizer's slots, and where
each lies on the mesh), `step` (gradients, one update, its metrics, whether they are finite),
`adafactor` and `schedules` (T5X's numerics, for optax), `update_rules` (what others do against
forgetting, around any optimizer) and `alignment` (gradients on true and on shuffled labels while a
stage trains).

Public: `adafactor.adafactor`, `schedules.create_learning_rate_scheduler`, the rules of
`update_rules` and `alignment.AlignmentConfig`, which users bind in gin.
"""
