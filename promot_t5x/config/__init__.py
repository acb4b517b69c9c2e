"""Configuration of a run: gin files and bindings, read in T5X's way and checked before it starts.

`--gin_file`, `--gin.NAME=VALUE` and `--gin_search_paths` mean what they mean in T5X; later
bindings override earlier ones. What T5X lets pass is an error here, because it costs a run: a
macro that nothing uses (often a misspelled one), a binding that the run never reaches, a value
that is missing, a user's value that a shipped run file overrides. Usual use:

    from promot_t5x import config

    run = config.configured(train.train)
    config.parse(files, bindings, search_paths)
    config.check([train.train])
    text = config.resolved_str()
    run()

Read `configuration` first (these functions and the configuration that they share), then
`gin_reader` (statements, and the place where each value was written), `gin_names` (what a name
stands for), `gin_graph` (which bindings a run reaches), `problems` (the messages) and `comments`
(what shipped files say of their macros). `validation` stands apart: it holds checks of single
values, which other packages make as they receive them.
The names below are public.
"""

from promot_t5x.config.configuration import arguments as arguments
from promot_t5x.config.configuration import bound as bound
from promot_t5x.config.configuration import check as check
from promot_t5x.config.configuration import configured as configured
from promot_t5x.config.configuration import describe_difference as describe_difference
from promot_t5x.config.configuration import explained_str as explained_str
from promot_t5x.config.configuration import files_read as files_read
from promot_t5x.config.configuration import macros as macros
from promot_t5x.config.configuration import parse as parse
from promot_t5x.config.configuration import resolved_str as resolved_str
from promot_t5x.config.gin_reader import gin_root as gin_root
