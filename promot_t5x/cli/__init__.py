"""The command line, one file a command.

`main` reads the words and turns errors into messages and exit statuses; `commands` lists what
there is, with the page of `--help`, and imports nothing heavy; `flags` holds what several
commands take. A command that runs a gin configuration lives in `runs`; every other one has a
file of its name here. Read `main` first. Nothing imports this package but `python -m promot_t5x`.
"""
