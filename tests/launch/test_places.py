"""GKE's manifests, Slurm's scripts and processes on this machine: what they hold and what runs."""

import shlex
import subprocess

import pytest
import yaml
from launch_helpers import Cloud, launch

from promot_t5x.launch import commands, retries
from promot_t5x.launch.commands import Redactor

AWKWARD = ["--gin.A='b c'", '--gin.B={"x": "$(HOME) $x"}', "--gin.C='\"`id`'", "zwei\nZeilen", ""]
RUN = ["--", "promot", *AWKWARD]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cloud(tmp_path, monkeypatch)


# ------------------------------------------------------------------------------ GKE

TPU = ["--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--node_count=2", "--spot"]
GPU = ["--accelerator=nvidia-h100-80gb", "--devices_per_host=8", "--hosts=3"]


def gke(*words, run=RUN):
    return launch("gke", "--name=rte", "--image=host/promot:1", "--poll=0.01", *words, *run)


def applied(cloud):
    return yaml.safe_load((cloud.directory / "manifest").read_text())


def required(value, *path):
    """What stands at a path of a manifest; every field that the kind requires must be there."""
    for key in path:
        value = value[key]
    assert value not in (None, "", [], {}), path
    return value


def test_a_jobset_of_tpu_slices_has_every_field_that_its_kinds_require(cloud):
    cloud.cue(conditions=["", "StartupPolicyCompleted", "Completed"])
    done = gke(*TPU, "--service_account=trainer", "--env=A=b", "--secret_env=HF_TOKEN=hf:token")
    assert done.status == 0, done
    manifest = applied(cloud)
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and manifest["kind"] == "JobSet"
    assert required(manifest, "metadata", "name") == "rte"
    assert required(manifest, "metadata", "annotations") == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert manifest["spec"]["failurePolicy"] == {
        "maxRestarts": 20,
        "rules": [
            {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
            {"action": "RestartJobSet"},
        ],
    }
    (replicated,) = required(manifest, "spec", "replicatedJobs")
    # One job a slice, one pod a host of four chips.
    assert required(replicated, "name") == "slice" and replicated["replicas"] == 2
    job = required(replicated, "template", "spec")
    assert job["parallelism"] == job["completions"] == 4
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    pod = required(job, "template", "spec")
    # A pod failure policy is valid only where pods are not restarted in place.
    assert rule["action"] == "FailJob" and pod["restartPolicy"] == "Never"
    (container,) = required(pod, "containers")
    assert rule["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": [2, 74],
    }  # fmt: skip
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["hostNetwork"] is True and pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert pod["serviceAccountName"] == "trainer"
    assert {each["key"] for each in pod["tolerations"]} == {
        "google.com/tpu", "cloud.google.com/gke-spot",
    }  # fmt: skip
    assert required(container, "image") == "host/promot:1"
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    assert {port["containerPort"] for port in container["ports"]} == {8476, 8471, 8080}
    assert container["env"] == [
        {"name": "A", "value": "b"},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
    ]
    # As Kubernetes reads a command: $$ is a dollar, and nothing is left for it to expand.
    assert [word.replace("$$", "$") for word in container["command"]] == [
        "promot-t5x", "promot", *AWKWARD,
    ]  # fmt: skip
    assert "&id" not in (cloud.directory / "manifest").read_text()
    verbs = [words[1] for words in cloud.calls()]
    assert verbs == ["apply", "logs", "get", "logs", "get", "logs", "get"]
    assert "a line of the log" in done.out


def test_processes_of_gpu_nodes_are_told_who_they_are(cloud):
    cloud.cue(conditions=["Completed"])
    assert gke(*GPU).status == 0
    (replicated,) = applied(cloud)["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert replicated["replicas"] == 1 and job["completions"] == 3
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    environment = {each["name"]: each for each in pod["containers"][0]["env"]}
    address = environment["JAX_COORDINATOR_ADDRESS"]["value"]
    assert address == "rte-slice-0-0.rte:8476"
    assert environment["JAX_NUM_PROCESSES"]["value"] == "3"
    field = environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_a_jobset_that_fails_is_told_of(cloud):
    cloud.cue(conditions=["", "Failed"])
    done = gke(*GPU)
    assert done.status == 1 and "the run has failed" in done.out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--accelerator=tpu-v6e-slice",), "--topology=''"),
        (("--accelerator=tpu-v6e-slice", "--topology=4by4"), "--topology='4by4'"),
        (("--accelerator=tpu-v6e-slice", "--topology=1x2"), "does not divide"),
        ((*GPU, "--env=WANDB_API_KEY=abcdefgh"), "--secret_env=WANDB_API_KEY=SECRET:KEY"),
        ((*GPU, "--secret_env=HF_TOKEN=hf_abcdefgh"), "give NAME=SECRET:KEY"),
    ],
)
def test_bad_input_applies_nothing(cloud, words, complaint):
    done = gke(*words)
    assert done.status == 2 and complaint in done.err
    assert "abcdefgh" not in done.err + done.out
    assert cloud.calls() == []


def test_a_jobset_that_is_refused(cloud, monkeypatch):
    monkeypatch.setenv("APPLY", "1")
    assert "kubectl did not take the JobSet" in gke(*GPU).err


# ---------------------------------------------------------------------------- Slurm


def slurm(*words):
    return launch("slurm", "--name=rte", "--nodes=2", "--backoff=1", *words, *RUN)


def run_script(cloud, monkeypatch, restarts):
    """What the submitted script ends with, on the first node; and whether it asks for more."""
    program = shlex.quote(f"{cloud.directory}/promot-t5x")
    package = f'#!/bin/bash\nshift 2; exec {program} "$@"\n'
    (cloud.directory / "python").write_text(package)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    done = subprocess.run(["bash", cloud.directory / "script"], capture_output=True, text=True)
    requeued = cloud.directory / "requeued"
    return done.returncode, requeued.exists() and requeued.read_text()


def test_a_batch_script_runs_and_asks_for_more_where_that_helps(cloud, monkeypatch):
    monkeypatch.setattr("sys.executable", str(cloud.directory / "python"))
    done = slurm("--partition=gpu", "--env=NOTE=a b", "--sbatch=--constraint=h100")
    assert done.status == 0 and "4711" in done.out or "submitted" in done.out
    script = (cloud.directory / "script").read_text()
    options = {line.split()[1] for line in script.splitlines() if line.startswith("#SBATCH ")}
    assert options >= {
        "--job-name=rte", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue",
        "--signal=TERM@300", "--partition=gpu", "--constraint=h100", "--output=rte-%j.log",
    }  # fmt: skip
    assert "export NOTE='a b'" in script
    cloud.cue(worker_0=[0, 2, 134, 134])
    assert run_script(cloud, monkeypatch, 0) == (0, False)
    assert cloud.ran()[0]["words"] == ["promot", *AWKWARD]
    assert run_script(cloud, monkeypatch, 0) == (2, False)
    assert run_script(cloud, monkeypatch, 20) == (134, False)
    status, requeued = run_script(cloud, monkeypatch, 0)
    assert requeued == "requeue 4711\n"


def test_secrets_are_not_written_into_the_script(cloud):
    done = slurm("--env=HF_TOKEN=abcdefgh")
    assert done.status == 2 and "leave the flag out" in done.err and "abcdefgh" not in done.err
    assert not (cloud.directory / "script").exists()


# ---------------------------------------------------------------- on this machine


def test_a_mistake_in_every_process_ends_the_run(cloud):
    done = launch("local", "--processes=2", "--cpu_devices=1", "--", "train", "--no_such_flag")
    assert done.status == 2
    for index in (0, 1):
        assert f"[{index}] promot-t5x: error: train does not take '--no_such_flag'" in done.out
    assert "restart" not in done.out
    assert f"JAX_PROCESS_ID={index}" in done.out


def test_gpus_are_shared_out(cloud):
    words = ["local", "--print", "--processes=2", "--gpus_per_process=4", "--", "train"]
    done = launch(*words)
    shown = [line for line in done.out.splitlines() if "CUDA_VISIBLE_DEVICES" in line]
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3 " in shown[0]
    assert "CUDA_VISIBLE_DEVICES=4,5,6,7 " in shown[1]


# ------------------------------------------------------------------- what they share


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([0, 0], 0),
        ([0, 1], 1),
        ([134, 2, 134], 2),
        ([-9, 134], -9),
        ([75, 75], 75),
        ([1, 74], 74),
        ([], 0),
    ],
)
def test_one_status_for_all_processes(statuses, status):
    assert retries.outcome(statuses) == status


def test_waits_double_and_a_run_that_held_out_starts_the_count_anew(monkeypatch):
    waits, said = [], []
    clock = [0.0]
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    monkeypatch.setattr(retries.time, "monotonic", lambda: clock[0])
    again = retries.Retries(most=3, first_seconds=10.0, longest_seconds=25.0)
    again._began = 0.0
    assert all(again.again("it failed", said.append) for _ in range(3))
    assert waits == [10, 20, 25]
    assert not again.again("it failed", said.append)
    assert said[-1] == "it failed; given up after 3 restarts"
    clock[0] = 4000.0
    assert again.again("it failed", said.append) and waits[-1] == 10


def test_secrets_are_found_by_name_and_by_value():
    redact = Redactor({"HF_TOKEN": "abcdefgh", "PATH": "/usr/bin", "SHORT_KEY": "ab"})
    assert redact("x abcdefgh y /usr/bin ab") == "x *** y /usr/bin ab"
    assert redact("WANDB_API_KEY='a b' TOKENIZERS_PARALLELISM=false") == (
        "WANDB_API_KEY=*** TOKENIZERS_PARALLELISM=false"
    )
    names = ("HF_TOKEN", "wandb_api_key", "AWS_SECRET", "DB_PASSWORD", "GOOGLE_CREDENTIALS")
    assert all(map(commands.is_secret, names))
    assert not any(map(commands.is_secret, ("TOKENIZERS_PARALLELISM", "KEYBOARD", "MODEL_DIR")))
