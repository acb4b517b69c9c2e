"""What a run takes of a TPU slice that is not there: memory, time and traffic (`promot-t5x plan`).

`chips` knows the slices that Cloud TPU offers, `planned_runs` the programs that a configuration
runs, `compiler` compiles them with libtpu for such a slice, `hlo` reads traffic and collectives
from the result, `flops` counts operations from shapes, `roofline` bounds the step, `estimates` puts
these together and `table` prints them. `settings_search` tries meshes, `cache` keeps what was
compiled. Read `estimates` first. Nothing else in the package imports it.
"""
