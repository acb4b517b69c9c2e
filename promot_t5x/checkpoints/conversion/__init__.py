"""Copying a checkpoint of one format into another: `promot-t5x convert`.

To read: `conversion` (`open_for_conversion` and `Conversion.run`), then `stage`, which completes a
stage's checkpoint with what was frozen beside it, and `writers`, one class for each format. The
first is public.
"""

FORMATS = ("promot", "t5x", "t5x-legacy", "hf")
