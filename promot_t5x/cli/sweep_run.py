"""`promot-t5x sweep run`: every combination of some values, one run after the other."""

import argparse
import sys
import tempfile

from promot_t5x import config
from promot_t5x.cli import main
from promot_t5x.config import gin_reader
from promot_t5x.errors import EXIT_IN_USE, EXIT_NON_FINITE, InUseError, NonFiniteError, UserError
from promot_t5x.paths import user_path
from promot_t5x.report import sweep


def run(arguments: argparse.Namespace) -> int:
    """Run a share of a sweep; return 0, or the status of a run that was left out."""
    for binding in arguments.gin_bindings:
        if binding.partition("=")[0].strip() == "MODEL_DIR":
            raise UserError("MODEL_DIR is each run's own, in --output: leave it out.")
    home = user_path(arguments.output, "--output")
    values = [gin_reader.plain_values(text, "--over") for text in arguments.over]
    everything = sweep.cells(values)
    cells = sweep.share_of(everything, *arguments.share)
    words = {cell.directory: _words(arguments, cell) for cell in cells}
    # Every configuration is read before the first run starts.
    configured = {name: _resolved(own) for name, own in words.items()}
    done = {name: sweep.is_finished(home / name, text) for name, text in configured.items()}
    for cell in cells:
        state = "done" if done[cell.directory] else "to do"
        print(f"[sweep] {state}: {', '.join(cell.bindings)}")
    if arguments.dry_run:
        return 0
    status, left_out = 0, []
    with tempfile.TemporaryDirectory() as programs:
        _share_programs(programs)
        for number, cell in enumerate(cells, 1):
            name = cell.directory
            if done[name]:
                continue
            print(f"[sweep] run {number} of {len(cells)}: {', '.join(cell.bindings)}", flush=True)
            try:
                main.run_command(main.find_command("promot"), words[name])
            except (NonFiniteError, InUseError) as error:
                status = EXIT_IN_USE if isinstance(error, InUseError) else EXIT_NON_FINITE
                left_out.append(f"{home / name}: {main.message(error)}")
                continue
            sweep.finish(home / name, cell, configured[name])
    for line in left_out:
        print(f"[sweep] left out: {line}", file=sys.stderr)
    return status


def _words(arguments: argparse.Namespace, cell: sweep.SweepCell) -> list[str]:
    """Return the command line of a combination's run."""
    home = user_path(arguments.output, "--output")
    bindings = [*arguments.gin_bindings, *cell.bindings, f"MODEL_DIR = '{home / cell.directory}'"]
    words = [f"--gin_file={file}" for file in arguments.gin_file]
    words += [f"--gin_bindings={binding}" for binding in bindings]
    if arguments.gin_search_paths:
        words.append(f"--gin_search_paths={','.join(arguments.gin_search_paths)}")
    if arguments.tfds_data_dir:
        words.append(f"--tfds_data_dir={arguments.tfds_data_dir}")
    return words


def _resolved(words: list[str]) -> str:
    """Return the configuration of a command line, checked."""
    promot = main.find_command("promot")
    main.configure(promot, main.parse_flags(promot, words))
    return config.resolved_str()


def _share_programs(directory: str) -> None:
    """Compile a program that several runs have, as those that differ in their steps do, once."""
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", directory)
