"""What `gin/t5x/` binds when upstream T5X, and not this project's engine, runs the model.

Nothing else imports these modules. Those that need `t5x` import it when they are called, so that
the rest can be read, checked and tested where T5X is not installed. See `docs/t5x.md`.
"""
