"""GKE: `promot-t5x launch gke --name=… --image=… --accelerator=… --topology=… -- VERB …`.

Makes a JobSet of one job a slice and one pod a host, gives it to kubectl, follows the log of the
first pod and waits for the end. Kubernetes starts it again where a node is preempted or a process
fails; a mistake of the user's (exit status 2) ends it. Secrets are named, never written down:
`--secret_env=HF_TOKEN=my-secret:token`. The image holds this package (docs/launch.md has one).
"""

import argparse
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import yaml

from promot_t5x.errors import EXIT_NOT_SAVED, EXIT_USER_ERROR, UserError
from promot_t5x.launch.commands import Shell, check_name, is_secret, parse_environment
from promot_t5x.launch.retries import Retries

_JOB = "slice"  # the name of the replicated job; its pods are NAME-slice-J-I
_CONTAINER = "promot-t5x"
_COORDINATOR_PORT = 8476
_TPU_PORTS = (8471, 8080)  # between TPU hosts, and between slices
_POLL_SECONDS = 15.0
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


def launch(arguments: argparse.Namespace, words: Sequence[str], shell: Shell) -> int:
    """Apply the JobSet and wait for its end; 0 or 1."""
    text = yaml.safe_dump(manifest(arguments, words), sort_keys=False, width=100)
    shell.show_file(f"{arguments.name}.yaml", text)
    namespace = f"--namespace={arguments.namespace}"
    if shell.run(["kubectl", "apply", namespace, "--filename=-"], stdin=text).status:
        raise UserError("kubectl did not take the JobSet; the reason is above.")
    shell.say(f"to end it: kubectl delete jobset {arguments.name} {namespace}")
    labels = (
        f"jobset.sigs.k8s.io/jobset-name={arguments.name},jobset.sigs.k8s.io/job-index=0,"
        "batch.kubernetes.io/job-completion-index=0"
    )
    logs = ["kubectl", "logs", namespace, "--follow", "--tail=-1", f"--selector={labels}"]
    conditions = 'jsonpath={.status.conditions[?(@.status=="True")].type}'
    state = ["kubectl", "get", "jobset", arguments.name, namespace, "--output", conditions]
    retries = Retries(most=arguments.max_restarts, first_seconds=arguments.poll)
    while True:
        # The log ends with its pod; the JobSet may then have ended, or be starting new pods.
        shell.follow(logs, lambda line: print(line, flush=True), silence_seconds=math.inf)
        done = shell.read(state, dry="Completed")
        if "Completed" in done.out.split():
            shell.say("the run is done")
            return 0
        if "Failed" in done.out.split():
            shell.say("the run has failed; its log says why")
            return 1
        if done.status and not retries.again("kubectl cannot say how the run is", shell.say):
            return 1
        time.sleep(arguments.poll)


def manifest(arguments: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """The JobSet, as YAML's mappings and lists.

    **Raises** `UserError` for a topology that is none, and a secret that would be written down.
    """
    check_name(arguments.name)
    tpu = arguments.accelerator.startswith("tpu")
    hosts = _hosts(arguments) if tpu else arguments.hosts
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
    """A user's mistake, or a disk that takes nothing more, fails the job for good."""
    statuses = {
        "containerName": _CONTAINER,
        "operator": "In",
        "values": [EXIT_USER_ERROR, EXIT_NOT_SAVED],
    }
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
    return chips // each


def _ports(tpu: bool) -> tuple[int, ...]:
    return (_COORDINATOR_PORT, *(_TPU_PORTS if tpu else ()))


def _environment(arguments: argparse.Namespace, hosts: int, tpu: bool) -> list[dict[str, Any]]:
    """The container's variables; GKE itself tells the pods of TPU slices who they are."""
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
