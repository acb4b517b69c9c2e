"""GKE's manifests, Slurm's scripts and processes on this machine: what they hold and what runs."""

import base64
import shlex
import subprocess

import pytest
import yaml
from launch_helpers import Cloud, launch

from promot_t5x.launch import commands, retries
from promot_t5x.launch.commands import Redactor

pytestmark = pytest.mark.slow

AWKWARD = [
    "--gin_file=demo/promot.gin",
    "--gin.MODEL_DIR='gs://b c/$(HOME) $ \"`id`'",
    "--gin_bindings=PROMPT_LENGTH = (\n20)",
]
RUN = ["--", "promot", *AWKWARD]
NONE = "error: Error from server (NotFound): no such JobSet"


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cloud(tmp_path, monkeypatch)


# ------------------------------------------------------------------------------ GKE

TPU = ["--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--node_count=2", "--spot"]
GPU = ["--accelerator=nvidia-h100-80gb", "--devices_per_host=8", "--hosts=3"]


def gke(*words, run=RUN):
    pace = ["--poll=0.01", "--backoff=0.01"]
    return launch("gke", "--name=rte", "--image=host/promot:1", *pace, *words, *run)


def applied(cloud):
    return yaml.safe_load((cloud.directory / "manifest").read_text())


def required(value, *path):
    """What stands at a path of a manifest; every field that the kind requires must be there."""
    for key in path:
        value = value[key]
    assert value not in (None, "", [], {}), path
    return value


def test_a_jobset_of_tpu_slices_has_every_field_that_its_kinds_require(cloud):
    cloud.cue(conditions=[NONE, "", "StartupPolicyCompleted", "Completed"])
    done = gke(*TPU, "--service_account=trainer", "--env=A=b", "--secret_env=HF_TOKEN=hf:token")
    assert done.status == 0, done
    manifest = applied(cloud)
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert manifest["kind"] == "JobSet"
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
    assert required(replicated, "name") == "slice"
    assert replicated["replicas"] == 2
    job = required(replicated, "template", "spec")
    assert job["parallelism"] == job["completions"] == 4
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    pod = required(job, "template", "spec")
    # A pod failure policy is valid only where pods are not restarted in place.
    assert rule["action"] == "FailJob"
    assert pod["restartPolicy"] == "Never"
    (container,) = required(pod, "containers")
    assert rule["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": [2, 73, 74, 76, 130],
    }  # fmt: skip
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["hostNetwork"] is True
    assert pod["dnsPolicy"] == "ClusterFirstWithHostNet"
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
        "promot-t5x", "promot",
        "--require_devices=platform=tpu,kind=TPU v5 lite|TPU v5e,count=32,processes=8", *AWKWARD,
    ]  # fmt: skip
    assert "&id" not in (cloud.directory / "manifest").read_text()
    verbs = [words[1] for words in cloud.calls()]
    assert verbs == ["get", "apply", *["logs", "get"] * 3]
    assert "a line of the log" in done.out


def test_processes_of_gpu_nodes_are_told_who_they_are(cloud):
    cloud.cue(conditions=[NONE, "Completed"])
    assert gke(*GPU).status == 0
    (replicated,) = applied(cloud)["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert replicated["replicas"] == 1
    assert job["completions"] == 3
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    environment = {each["name"]: each for each in pod["containers"][0]["env"]}
    address = environment["JAX_COORDINATOR_ADDRESS"]["value"]
    assert address == "rte-slice-0-0.rte:8476"
    assert environment["JAX_NUM_PROCESSES"]["value"] == "3"
    field = environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_a_jobset_that_fails_is_told_of(cloud):
    cloud.cue(conditions=[NONE, "", "Failed"])
    done = gke(*GPU)
    assert done.status == 1
    assert "the run has failed" in done.out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--accelerator=tpu-v6e-slice",), "--topology=''"),
        (("--accelerator=tpu-v6e-slice", "--topology=4by4"), "--topology='4by4'"),
        (("--accelerator=tpu-v6e-slice", "--topology=1x2"), "does not divide"),
        ((*GPU, "--env=WANDB_API_KEY=abcdefgh"), "--secret_env=WANDB_API_KEY=SECRET:KEY"),
        ((*GPU, "--secret_env=HF_TOKEN=hf_abcdefgh"), "give NAME=SECRET:KEY"),
        ((*GPU, "--hosts=0"), "--hosts=0: give at least 1"),
    ],
)
def test_bad_input_applies_nothing(cloud, words, complaint):
    done = gke(*words)
    assert done.status == 2
    assert complaint in done.err
    assert "abcdefgh" not in done.err + done.out
    assert cloud.calls() == []


def verbs(cloud):
    return [words[1] for words in cloud.calls()]


@pytest.mark.parametrize("before", ["Completed", "Failed"])
def test_an_ended_jobset_of_the_same_name_is_not_this_run(cloud, before):
    cloud.cue(conditions=[before, "", "Completed"])
    done = gke(*GPU)
    assert done.status == 0
    assert f"an earlier run of this name has ended ({before})" in done.out
    assert verbs(cloud) == ["get", "delete", "apply", "logs", "get", "logs", "get"]


def test_a_running_jobset_of_the_same_name_is_followed(cloud):
    cloud.cue(conditions=["", "", "Completed"])
    assert gke(*GPU).status == 0
    assert verbs(cloud) == ["get", "apply", "logs", "get", "logs", "get"]


def test_a_passing_error_of_kubectl_is_no_answer(cloud):
    passing = "error: Unable to connect to the server"
    cloud.cue(conditions=[passing, NONE, "", passing, "Completed"])
    assert gke(*GPU).status == 0
    cloud.cue(conditions=[NONE, "", passing])
    done = gke(*GPU, "--max_restarts=2")
    assert done.status == 1
    assert "kubectl get jobset" in done.err
    assert "the run may be running, and costs. To end it: kubectl delete jobset rte" in done.out
    # Nothing is applied or deleted where it is unknown what is there.
    before = len(cloud.calls())
    cloud.cue(conditions=[passing])
    assert gke(*GPU, "--max_restarts=2").status == 1
    assert {words[1] for words in cloud.calls()[before:]} == {"get"}


def test_a_jobset_that_was_deleted_has_failed(cloud):
    cloud.cue(conditions=[NONE, "", NONE])
    done = gke(*GPU)
    assert done.status == 1
    assert "the JobSet has been deleted" in done.out


def test_local_files_travel_in_a_config_map(cloud):
    texts = {"mine.gin": "include 'demo/promot.gin'\ninclude 'runs/more.gin'\n"}
    texts["runs/more.gin"] = "PROMPT_LENGTH = 20\n"
    (cloud.directory / "runs").mkdir()
    for name, text in texts.items():
        (cloud.directory / name).write_text(text)
    cloud.cue(conditions=[NONE, "Completed"])
    run = ["--", "promot", "--gin_file=mine.gin", "--gin.MODEL_DIR='gs://b/run'"]
    assert gke(*GPU, run=run).status == 0
    files, job = yaml.safe_load_all((cloud.directory / "manifest").read_text())
    assert files["kind"] == "ConfigMap"
    assert files["metadata"]["name"] == "rte-files"
    (replicated,) = job["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    assert volume["configMap"]["name"] == "rte-files"
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert mount["mountPath"] == container["workingDir"]
    found = {
        item["path"]: base64.b64decode(files["binaryData"][item["key"]]).decode()
        for item in volume["configMap"]["items"]
    }
    assert found == texts
    assert container["command"][3:] == run[2:]
    (cloud.directory / "runs" / "more.gin").write_text("PROMPT_LENGTH = 20\n" + "#" * 10**6)
    done = gke(*GPU, run=run)
    assert done.status == 2
    assert "the largest is runs/more.gin" in done.err


def test_a_jobset_that_is_refused(cloud, monkeypatch):
    cloud.cue(conditions=[NONE])
    monkeypatch.setenv("APPLY", "1")
    assert "kubectl did not take the JobSet" in gke(*GPU).err


# ---------------------------------------------------------------------------- Slurm


def slurm(*words, run=RUN):
    return launch("slurm", "--name=rte", "--nodes=2", "--backoff=1", *words, *run)


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
    assert (done.status == 0 and "4711" in done.out) or "submitted" in done.out
    script = (cloud.directory / "script").read_text()
    options = {line.split()[1] for line in script.splitlines() if line.startswith("#SBATCH ")}
    assert options >= {
        "--job-name=rte", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue",
        "--signal=TERM@300", "--partition=gpu", "--constraint=h100", "--output=rte-%j.log",
    }  # fmt: skip
    assert "export NOTE='a b'" in script
    cloud.cue(worker_0=[0, 2, 134, 134])
    assert run_script(cloud, monkeypatch, 0) == (0, False)
    required = "--require_devices=platform=gpu,count=16,processes=2"
    assert cloud.ran()[0]["words"] == ["promot", required, *AWKWARD]
    assert run_script(cloud, monkeypatch, 0) == (2, False)
    assert run_script(cloud, monkeypatch, 20) == (134, False)
    _, requeued = run_script(cloud, monkeypatch, 0)
    assert requeued == "requeue 4711\n"


def test_secrets_are_not_written_into_the_script(cloud):
    done = slurm("--env=HF_TOKEN=abcdefgh")
    assert done.status == 2
    assert "leave the flag out" in done.err
    assert "abcdefgh" not in done.err
    assert not (cloud.directory / "script").exists()


@pytest.mark.parametrize("directory", ["/tmp/run", "run", "/dev/shm/run", "/var/tmp/a/b"])
def test_a_directory_of_one_machine_is_refused(cloud, directory):
    # The working directory of this test lies in one that each machine has for itself.
    done = slurm(run=[*RUN, f"--gin.MODEL_DIR='{directory}'"])
    assert done.status == 2
    assert f"MODEL_DIR = '{directory}' lies in " in done.err
    assert not (cloud.directory / "script").exists()
    assert slurm(run=[*RUN, "--gin.MODEL_DIR='/shared/run'"]).status == 0


# ---------------------------------------------------------------- on this machine


def test_a_mistake_starts_no_process(cloud):
    done = launch("local", "--processes=2", "--cpu_devices=1", "--", "train", "--no_such_flag")
    assert done.status == 2
    assert "promot-t5x: error: train does not take '--no_such_flag'" in done.err
    assert "JAX_PROCESS_ID" not in done.out


def test_other_devices_than_were_asked_for_end_the_run_in_every_process(cloud):
    words = ["local", "--processes=2", "--cpu_devices=1", "--env=JAX_PLATFORMS=cpu"]
    wrong = "--require_devices=platform=gpu,kind=h100,count=16,processes=2"
    done = launch(*words, "--", "promot", "--gin_file=demo/promot.gin", wrong)
    assert done.status == 2
    for index in (0, 1):
        said = f"[{index}] promot-t5x (process {index} of 2): error: This run asked for "
        assert said + "platform=gpu,kind=h100,count=16,processes=2" in done.out
        assert f"JAX_PROCESS_ID={index}" in done.out
    assert "JAX found 2 x cpu (platform cpu) in 2 processes" in done.out
    assert "restart" not in done.out
    assert not (cloud.directory / "runs").exists()


def test_gpus_are_shared_out(cloud):
    words = ["local", "--print", "--processes=2", "--gpus_per_process=4", *RUN]
    done = launch(*words)
    shown = [line for line in done.out.splitlines() if "CUDA_VISIBLE_DEVICES" in line]
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3 " in shown[0]
    assert "CUDA_VISIBLE_DEVICES=4,5,6,7 " in shown[1]
    assert "--require_devices=platform=gpu,count=8,processes=2" in shown[1]


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
    assert again.again("it failed", said.append)
    assert waits[-1] == 10


def test_secrets_are_found_by_name_and_by_value():
    redact = Redactor({"HF_TOKEN": "abcdefgh", "PATH": "/usr/bin", "SHORT_KEY": "ab"})
    assert redact("x abcdefgh y /usr/bin ab") == "x *** y /usr/bin ab"
    assert redact("WANDB_API_KEY='a b' TOKENIZERS_PARALLELISM=false") == (
        "WANDB_API_KEY=*** TOKENIZERS_PARALLELISM=false"
    )
    names = ("HF_TOKEN", "wandb_api_key", "AWS_SECRET", "DB_PASSWORD", "GOOGLE_CREDENTIALS")
    assert all(map(commands.is_secret, names))
    assert not any(map(commands.is_secret, ("TOKENIZERS_PARALLELISM", "KEYBOARD", "MODEL_DIR")))
