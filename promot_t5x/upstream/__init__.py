"""The parts of this project that `gin/t5x/` binds when upstream T5X runs the model.

To read: `feature_converter` puts prompts in front of SeqIO's examples, `tasks` registers the tasks,
`prompts` and `restore` give T5X the weights to start from, `optimizers` the parts to train. All of
them are public to gin files, and nothing else imports them. Those that need `t5x` import it when
they are called, so that the rest can be read, checked and tested where T5X is not installed. See
`docs/t5x.md`.
"""
