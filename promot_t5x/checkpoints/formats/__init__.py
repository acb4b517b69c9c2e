"""Checkpoint formats: T5X's two, Hugging Face's and its adapters, and the layouts of networks.

To read: `source` (what an opened checkpoint is), `layouts` (the same numbers under other paths),
`shape` (the network that parameters belong to); then the readers `t5x`, `hf_config`,
`hugging_face`, `safetensors` and `peft`, and `reading`, the words for what can be wrong with files.
Beneath them lie `read_arrays`, `write_arrays` and `t5x_writing`. Nothing here knows of runs and
stages; outside of `checkpoints`, only names of parameters (`shape.EMBEDDING`) are of use.
"""
