"""`promot-t5x tasks prepare`: download and prepare the data sets that tasks read.

One data set after another, each by its TFDS builder, which keeps finished downloads and makes a
data set's directory appear in one step: whatever ended the command, the next one goes on with the
files that are missing. Tokens are made later, once, by the run that needs them (`data.store`).
"""

import argparse
import functools
import os
import socket
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from promot_t5x.data import sources
from promot_t5x.data.lazy import import_seqio
from promot_t5x.data.prepared import DataSet, data_sets, is_prepared
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.tasks.sources import HuggingFace, Joined

_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def prepare(arguments: argparse.Namespace) -> int:
    """Prepare what the names need and is not there."""
    if arguments.module:
        sources.import_task_module(arguments.module)
    factories = _sources(arguments.names)
    wanted: dict[str, DataSet] = {}
    for make in factories.values():
        wanted |= {repr(each): each for each in data_sets(make())}
    for number, data_set in enumerate(wanted.values(), start=1):
        _prepare(data_set, f"[{number}/{len(wanted)}] {data_set.name}")
    hubs = list(dict.fromkeys(hub for make in factories.values() for hub in _hubs(make)))
    for make in hubs:
        for split in make.splits:
            print(
                f"{'/'.join(make.arguments)}, {split}: {len(make.rows(split)):,} rows", flush=True
            )
    if not wanted and not hubs:
        print("nothing to prepare: these tasks read no data set that is downloaded")
    return 0


def _hubs(make: Callable[[], Any]) -> Sequence[HuggingFace]:
    """Return the data sets of the Hugging Face hub that a source reads."""
    if isinstance(make, Joined):
        return [part for _, part in make.parts]
    return [make] if isinstance(make, HuggingFace) else []


def _prepare(data_set: DataSet, label: str) -> None:
    builder = data_set.builder()
    if is_prepared(builder):
        print(f"{label}: prepared already in {builder.data_path}", flush=True)
        return
    print(f"{label}: preparing in {builder.data_path}", flush=True)
    _check_online(builder, data_set.name)
    try:
        builder.download_and_prepare()
    # Downloads fail in many ways: network, disk, checksums, files to be fetched by hand.
    except Exception as error:
        raise UserError(
            f"preparing {data_set.name} failed: {type(error).__name__}: {error}. What has been "
            "downloaded is kept; the same command goes on from there."
        ) from error
    counts = ", ".join(f"{n} {s.num_examples:,}" for n, s in builder.info.splits.items())
    print(f"{label}: done: {counts}", flush=True)


def _check_online(builder: Any, name: str) -> None:
    """Raise `UserError` at once where TFDS would try in vain for minutes."""
    if any(os.environ.get(proxy) for proxy in _PROXIES):
        return
    hosts = {urllib.parse.urlsplit(url).hostname for url in builder.url_infos or ()}
    known = sorted(host for host in hosts if host)
    if known and not any(map(_resolves, known)):
        raise UserError(
            f"{name} is not prepared and cannot be downloaded: this machine cannot reach "
            f"{', '.join(known[:3])}. Run the same command where there is a network, and copy its "
            f"directory {builder.data_path.parent} here."
        )


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _sources(names: Iterable[str]) -> dict[str, Callable[[], Any]]:
    """Task name -> what makes its source, for the tasks behind these names."""
    return dict(pair for name in names for pair in _of(name))


def _of(name: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    from promot_t5x.tasks import registry

    seqio = import_seqio()
    if registry.is_task(name):
        yield name, registry.get_task(name).source
    elif registry.is_mixture(name):
        for task in registry.get_mixture(name).rates:
            yield task, registry.get_task(task).source
    elif name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
        for task in seqio.get_subtasks(seqio.get_mixture_or_task(name)):
            yield task.name, functools.partial(getattr, task, "source")
    else:
        known = [*registry.names(), *seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
        raise UserError(
            f"there is no task or mixture {name!r}.{did_you_mean(name, known)} A task of your own "
            "needs --module."
        )
