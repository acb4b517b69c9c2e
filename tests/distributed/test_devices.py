"""What a run says of its devices, and which it refuses."""

import re

import pytest
import run_helpers

from promot_t5x.distributed import devices
from promot_t5x.distributed.devices import Devices, Requirement
from promot_t5x.errors import UserError
from promot_t5x.launch import accelerators

H100 = Devices(platform="gpu", kind="NVIDIA H100 80GB HBM3", count=16, processes=2)
V5E = Devices(platform="tpu", kind="TPU v5 lite", count=16, processes=4)
CPU = Devices(platform="cpu", kind="cpu", count=1, processes=1)


@pytest.mark.parametrize(
    ("text", "found", "met"),
    [
        ("platform=gpu,kind=h100,count=16,processes=2", H100, True),
        ("platform=gpu,kind=H100", H100, True),
        ("platform=gpu,kind=a100", H100, False),
        ("platform=gpu,kind=h10", H100, False),
        ("platform=gpu,count=8", H100, False),
        ("processes=3", H100, False),
        ("platform=tpu", CPU, False),
        ("platform=tpu,kind=TPU v5 lite|TPU v5e,count=16", V5E, True),
        # v5p is a "TPU v5", which a v5e is not.
        ("platform=tpu,kind=TPU v5|TPU v5p", V5E, False),
        ("count=1,processes=1", CPU, True),
    ],
)
def test_what_was_asked_for_is_compared_with_what_was_found(text, found, met):
    required = devices.parse(text)
    assert str(required) == text
    if met:
        required.check(found)
        return
    with pytest.raises(
        UserError, match=re.escape(f"asked for {text} (--require_devices), and JAX")
    ):
        required.check(found)


@pytest.mark.parametrize(
    "text", ["gpu", "platform=", "count=0", "count=two", "chips=4", "count=1,count=1", ""]
)
def test_a_requirement_that_is_none(text):
    with pytest.raises(UserError, match="--require_devices="):
        devices.parse(text)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("nvidia-h100-80gb", "NVIDIA H100 80GB HBM3"),
        ("nvidia-h100-mega-80gb", "NVIDIA H100 80GB HBM3"),
        ("nvidia-a100-80gb", "NVIDIA A100-SXM4-80GB"),
        ("nvidia-tesla-t4", "Tesla T4"),
        ("nvidia-tesla-v100", "Tesla V100-SXM2-16GB"),
        ("nvidia-l4", "NVIDIA L4"),
    ],
)
def test_labels_of_gke_nodes_and_names_of_their_gpus(label, kind):
    required = accelerators.gke_requirement(label, 8, 1)
    assert required.is_met_by(Devices(platform="gpu", kind=kind, count=8, processes=1))
    other = Devices(platform="gpu", kind="NVIDIA B200", count=8, processes=1)
    assert not required.is_met_by(other)


@pytest.mark.parametrize(
    ("environ", "platform"),
    [
        ({"SLURM_GPUS_ON_NODE": "4"}, "gpu"),
        ({"SLURM_JOB_GPUS": "0,1"}, "gpu"),
        ({"SLURM_GPUS_ON_NODE": "4", "JAX_PLATFORMS": "cpu"}, None),
        ({"SLURM_GPUS_ON_NODE": "0"}, None),
        ({}, None),
    ],
)
def test_a_slurm_job_with_gpus_must_use_them(environ, platform):
    assert devices.implied(environ) == Requirement(platform=platform)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return run_helpers.Lab(tmp_path_factory.mktemp("devices"))


def test_a_run_shows_and_records_its_devices_and_refuses_others(lab):
    directory = lab.directory / "run"
    words = lab.words("train", "pretrain", "train", MODEL_DIR=directory, TRAIN_STEPS=1)
    refused = run_helpers.here([*words, "--require_devices=platform=tpu,count=8"])
    assert refused.status == 2
    assert not directory.exists()
    assert "JAX found 8 x cpu (platform cpu) in 1 process. " in refused.err
    assert "libtpu" in refused.err
    done = run_helpers.here([*words, "--require_devices=platform=cpu,count=8"])
    assert done.status == 0, done.err
    assert "promot-t5x: devices: 8 x cpu (platform cpu) in 1 process\n" in done.err
    (launch,) = run_helpers.json_lines(directory / "launches.jsonl")
    found = {name: launch[name] for name in ("platform", "kind", "count", "processes")}
    assert found == {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1}
    assert not (directory / "owner.json").exists()
