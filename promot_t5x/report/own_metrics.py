"""The metrics that records name, a user's own among them."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promot_t5x.config import gin_reader
from promot_t5x.errors import UserError
from promot_t5x.tasks import metrics
from promot_t5x.tasks.metrics import AnyMetric


def load(summary: Mapping[str, Any]) -> list[AnyMetric]:
    """Return the metrics of a summary; a module of the user's is imported from where the run did.

    **Raises:** `UserError` where a metric is in a module that is not to be found.
    """
    for spec in summary["metric_specs"]:
        if "module" in spec and not _importable(str(spec["module"])):
            _import(str(spec["module"]), spec["function"], summary)
    return [metrics.from_spec(spec) for spec in summary["metric_specs"]]


def _importable(module: str) -> bool:
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _import(module: str, function: str, summary: Mapping[str, Any]) -> None:
    """Import a module by the name or path that the recorded configuration has of it."""
    known = [place for place in _modules(summary) if Path(place).stem == module or place == module]
    for place in known:
        if place.endswith(".py") and not Path(place).exists():
            continue
        # SeqIO, and TensorFlow with it, is needed for a user's module alone.
        from promot_t5x.data.sources import import_task_module

        import_task_module(place)
        print(
            f"Imported {place}, which has the metric {function} of {summary['task']}.",
            file=sys.stderr,
        )
        return
    said = f" The run imported it from {known[0]}, which is not here." if known else ""
    raise UserError(
        f"{summary['task']} is scored by the metric {function} of the module {module}, which "
        f"Python does not find.{said} Name its file: --module PATH/{module.rpartition('.')[2]}.py"
    )


def _modules(summary: Mapping[str, Any]) -> list[str]:
    """Return the modules of tasks that a run's configuration names."""
    text = summary.get("config") or ""
    bindings = gin_reader.plain_bindings(text, "the recorded configuration") if text else {}
    return [
        str(value).strip("'\"")
        for name, value in bindings.items()
        if name.rpartition(".")[2] in ("module", "MIXTURE_OR_TASK_MODULE")
        and str(value).startswith(("'", '"'))
    ]
