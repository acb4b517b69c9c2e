"""GKE: `promot-t5x launch gke --name=… --image=… --accelerator=… --topology=… -- VERB …`.

Makes a JobSet of one job a slice and one pod a host, gives it to kubectl, follows the log of the
first pod and waits for the end. Kubernetes starts it again where a node is preempted or a process
fails; a mistake of the user's (exit status 2) ends it. Secrets are named, never written down:
`--secret_env=HF_TOKEN=my-secret:token`. The image holds this package (docs/launch.md has one).
"""

import argparse
import base64
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from promot_t5x.errors import UserError
from promot_t5x.launch import accelerators, cloud
from promot_t5x.launch.commands import Shell, check_name, is_secret, parse_environment
from promot_t5x.launch.payload import Command, check_output, traveling
from promot_t5x.launch.retries import FINAL, Retries

_JOB = "slice"  # the name of the replicated job; its pods are NAME-slice-J-I
_CONTAINER = "promot-t5x"
_COORDINATOR_PORT = 8476
_TPU_PORTS = (8471, 8080)  # between TPU hosts, and between slices
_POLL_SECONDS = 15.0
_FILES = "/promot-t5x"  # where a container finds the command's local files
_CONFIG_MAP_BYTES = 700_000  # Kubernetes takes 1 MiB, in which base64 is four thirds of the files
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `launch gke` takes."""
    add = parser.add_argument
    add("--name", required=True, help="of the JobSet")
    add("--image", required=True, help="container image that holds this package")
    add(
        "--accelerator",
        required=True,
        metavar="TYPE",
        help="tpu-v5-lite-podslice, nvidia-h100-80gb …",
    )
    add("--topology", metavar="AxB[xC]", help="chips of a TPU slice, as in 4x4")
    add(
        "--devices_per_host",
        type=int,
        default=4,
        metavar="N",
        help="TPU chips or GPUs of a node (default 4)",
    )
    add("--hosts", type=int, default=1, metavar="N", help="GPU nodes (default 1)")
    add("--node_count", type=int, default=1, metavar="N", help="TPU slices (default 1)")
    add("--namespace", default="default")
    add("--service_account", metavar="NAME", help="Kubernetes service account, to reach buckets")
    add("--spot", action="store_true", help="run on spot nodes")
    add(
        "--secret_env",
        action="append",
        default=[],
        metavar="NAME=SECRET:KEY",
        help="set a variable from a Kubernetes secret; may be repeated",
    )
    add("--poll", type=float, default=_POLL_SECONDS, help=argparse.SUPPRESS)


def launch(arguments: argparse.Namespace, command: Command, shell: Shell) -> int:
    """Apply the JobSet and wait for its end.

    **Returns:** 0 where the run is complete; 1 where it failed, or Kubernetes did not answer.

    **Raises:** `UserError` for bad input, and where Kubernetes refuses the JobSet.
    """
    check_output(command, shared_disk=False)
    files = traveling(command, may_be_there=True)
    documents = [manifest(arguments, command, files)]
    if files:
        documents.insert(0, _config_map(arguments, files))
    text = yaml.safe_dump_all(documents, sort_keys=False, width=100)
    shell.show_file(f"{arguments.name}.yaml", text)
    job = _JobSet(arguments, shell)
    try:
        job.clear()
        if shell.run(["kubectl", "apply", job.namespace, "--filename=-"], stdin=text).status:
            raise UserError("kubectl did not take the JobSet; the reason is above.")
        shell.say(f"to end it: {shlex.join(job.delete_words)}")
        return job.follow()
    except cloud.CloudError as error:
        print(f"promot-t5x: error: {shell.redact(str(error))}", file=sys.stderr)
        shell.say(f"the run may be running, and costs. To end it: {shlex.join(job.delete_words)}")
        return 1


class _JobSet:
    """The JobSet of a run, through kubectl.

    **Attributes:**

    - `namespace`: the flag that names the Kubernetes namespace.
    """

    def __init__(self, arguments: argparse.Namespace, shell: Shell):
        self._arguments, self._shell = arguments, shell
        self.namespace = f"--namespace={arguments.namespace}"

    @property
    def delete_words(self) -> list[str]:
        """The command that ends and deletes it."""
        return ["kubectl", "delete", "jobset", self._arguments.name, self.namespace]

    def _conditions(self, *, dry: str) -> list[str] | None:
        """Return the conditions that hold; None where Kubernetes says that there is no such JobSet.

        **Raises:** `CloudError` where Kubernetes does not answer.
        """
        # The leading word makes an answer without conditions differ from none.
        wanted = 'jsonpath=conditions{range .status.conditions[?(@.status=="True")]} {.type}{end}'
        name = self._arguments.name
        words = ["kubectl", "get", "jobset", name, self.namespace, "--output", wanted]
        most, first = self._arguments.max_restarts, self._arguments.backoff
        retries = Retries(what="attempt", most=most, first_seconds=first)
        answer = cloud.ask(self._shell, words, retries, dry=dry)
        return None if answer is None else answer.split()

    def clear(self) -> None:
        """Delete an earlier JobSet of the same name that has ended; one that runs is left alone.

        Its conditions would count as this run's, and Kubernetes starts no JobSet anew.
        """
        ended = {"Completed", "Failed"} & set(self._conditions(dry="") or [])
        if not ended:
            return
        self._shell.say(f"an earlier run of this name has ended ({ended.pop()}); it is deleted")
        if self._shell.run([*self.delete_words, "--ignore-not-found"]).status:
            raise UserError("kubectl did not delete the earlier JobSet; the reason is above.")

    def follow(self) -> int:
        """Show the log until the run ends; return 0 where it is complete, else 1."""
        labels = (
            f"jobset.sigs.k8s.io/jobset-name={self._arguments.name},jobset.sigs.k8s.io/job-index=0,"
            "batch.kubernetes.io/job-completion-index=0"
        )
        logs = ["kubectl", "logs", self.namespace, "--follow", "--tail=-1", f"--selector={labels}"]
        while True:
            # The log ends with its pod; the JobSet may then have ended, or be starting new pods.
            self._shell.follow(logs, lambda line: print(line, flush=True), silence_seconds=math.inf)
            conditions = self._conditions(dry="Completed")
            if conditions is None:
                self._shell.say("the JobSet has been deleted")
                return 1
            if "Completed" in conditions:
                self._shell.say("the run is done")
                return 0
            if "Failed" in conditions:
                self._shell.say("the run has failed; its log says why")
                return 1
            time.sleep(self._arguments.poll)


def _config_map(arguments: argparse.Namespace, files: Mapping[str, Path]) -> dict[str, Any]:
    """Return the command's local files as Kubernetes keeps them.

    **Raises:** `UserError` where they are too large.
    """
    contents = {key: files[name].read_bytes() for key, name in _keys(files).items()}
    size = sum(map(len, contents.values()))
    if size > _CONFIG_MAP_BYTES:
        largest = max(files, key=lambda name: files[name].stat().st_size)
        raise UserError(
            f"The command's local files have {size:,} bytes, and Kubernetes takes "
            f"{_CONFIG_MAP_BYTES:,} at most; the largest is {largest}. Put it into the image or a "
            "bucket."
        )
    encoded = {key: base64.b64encode(content).decode() for key, content in contents.items()}
    metadata = {"name": f"{arguments.name}-files", "namespace": arguments.namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": encoded}


def _keys(files: Mapping[str, Path]) -> dict[str, str]:
    """Keys that a ConfigMap takes -> relative names of files."""
    return {f"file-{number}": name for number, name in enumerate(sorted(files))}


def manifest(
    arguments: argparse.Namespace, command: Command, files: Mapping[str, Path]
) -> dict[str, Any]:
    """Make the JobSet, as YAML's mappings and lists.

    **Arguments:**

    - `files`: the local files that it finds in its working directory, by their relative names.

    **Raises:** `UserError` for a topology that is none, and a secret that would be written down.
    """
    check_name(arguments.name)
    for name in ("devices_per_host", "hosts", "node_count"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}={getattr(arguments, name)}: give at least 1.")
    tpu = arguments.accelerator.startswith("tpu")
    hosts = _hosts(arguments) if tpu else arguments.hosts
    processes = hosts * (arguments.node_count if tpu else 1)
    requirement = accelerators.gke_requirement(
        arguments.accelerator, processes * arguments.devices_per_host, processes
    )
    words = command.requiring(requirement)
    resource = "google.com/tpu" if tpu else "nvidia.com/gpu"
    devices = {resource: str(arguments.devices_per_host)}
    container = {
        "name": _CONTAINER,
        "image": arguments.image,
        # Kubernetes expands $(NAME) and takes $$ for a dollar.
        "command": ["promot-t5x", *(word.replace("$", "$$") for word in words)],
        "env": _environment(arguments, hosts, tpu),
        "ports": [{"containerPort": port} for port in _ports(tpu)],
        "resources": {"requests": dict(devices), "limits": devices},
    }
    if files:
        container["workingDir"] = _FILES
        container["volumeMounts"] = [{"name": "files", "mountPath": _FILES}]
    if tpu:
        selector = {
            "cloud.google.com/gke-tpu-accelerator": arguments.accelerator,
            "cloud.google.com/gke-tpu-topology": arguments.topology,
        }
    else:
        selector = {"cloud.google.com/gke-accelerator": arguments.accelerator}
    tolerations = [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}]
    if arguments.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        tolerations.append({**spot, "effect": "NoSchedule"})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 300,  # in which SIGTERM saves
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
    }
    if files:
        items = [{"key": key, "path": name} for key, name in _keys(files).items()]
        source = {"name": f"{arguments.name}-files", "items": items}
        pod["volumes"] = [{"name": "files", "configMap": source}]
    metadata: dict[str, Any] = {"name": arguments.name, "namespace": arguments.namespace}
    if tpu:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
        # One job, and nothing else, on each node pool: a TPU slice is one.
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    if arguments.service_account:
        pod["serviceAccountName"] = arguments.service_account
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod that fails ends the job, and the JobSet starts all again
        "podFailurePolicy": {"rules": [_final_rule()]},
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},
            "successPolicy": {"operator": "All"},
            "failurePolicy": {
                "maxRestarts": arguments.max_restarts,
                "rules": [
                    {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                    {"action": "RestartJobSet"},
                ],
            },
            "replicatedJobs": [
                {
                    "name": _JOB,
                    "replicas": arguments.node_count if tpu else 1,
                    "template": {"spec": job},
                }
            ],
        },
    }


def _final_rule() -> dict[str, Any]:
    """Return the rule by which statuses that no restart changes fail the job for good."""
    values = [status for status in FINAL if status]
    statuses = {"containerName": _CONTAINER, "operator": "In", "values": values}
    return {"action": "FailJob", "onExitCodes": statuses}


def _hosts(arguments: argparse.Namespace) -> int:
    """Hosts of a TPU slice."""
    topology, each = arguments.topology or "", arguments.devices_per_host
    if not re.fullmatch(r"\d+x\d+(x\d+)?", topology):
        raise UserError(
            f"--topology={topology!r}: give the chips of a slice, as in 4x4 or 2x2x4; "
            "GKE's page of TPU node pools lists them."
        )
    chips = math.prod(map(int, topology.split("x")))
    if chips % each:
        raise UserError(
            f"--topology={topology} has {chips} chips, which --devices_per_host={each} does not "
            "divide."
        )
    hosts: int = chips // each
    return hosts


def _ports(tpu: bool) -> tuple[int, ...]:
    return (_COORDINATOR_PORT, *(_TPU_PORTS if tpu else ()))


def _environment(arguments: argparse.Namespace, hosts: int, tpu: bool) -> list[dict[str, Any]]:
    """Return the container's variables; GKE itself numbers the pods of TPU slices."""
    given = parse_environment(arguments.env, os.environ)
    for name in given:
        if is_secret(name):
            raise UserError(
                f"--env={name} would stand in the manifest for all to read: put it into a "
                f"Kubernetes secret and give --secret_env={name}=SECRET:KEY."
            )
    variables: list[dict[str, Any]] = [{"name": n, "value": v} for n, v in given.items()]
    for word in arguments.secret_env:
        match = re.fullmatch(r"([A-Za-z_]\w*)=([a-z0-9.-]+):([\w.-]+)", word)
        if match is None:
            raise UserError("--secret_env: give NAME=SECRET:KEY, names and never the value.")
        reference = {"secretKeyRef": {"name": match[2], "key": match[3]}}
        variables.append({"name": match[1], "valueFrom": reference})
    if not tpu and hosts > 1:
        leader = f"{arguments.name}-{_JOB}-0-0.{arguments.name}:{_COORDINATOR_PORT}"
        variables += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": leader},
            {"name": "JAX_NUM_PROCESSES", "value": str(hosts)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}},
        ]
    return variables
