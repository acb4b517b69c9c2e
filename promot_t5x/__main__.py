"""`python -m promot_t5x` is `promot-t5x`."""

from promot_t5x.cli.main import program

program()
