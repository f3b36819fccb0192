"""Every file in cluster/ against the schema of what reads it, the pinned versions, and what each must say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import validate_parameters
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from test_packaging import PROJECT, ROOT, entries

CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.iterdir() if path.name != "README.md")
LAUNCHER = [CLUSTER / f"{name}.yaml" for name in ("ssh", "aws", "gcp")]
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]
IMAGE = f"REGISTRY/statten:{PROJECT['version']}-ray{entries('requirements.lock')['ray']}"


def test_every_target_has_its_file():
    names = {path.name for path in FILES}
    assert names == {
        "local.sh", "ssh.yaml", "aws.yaml", "gcp.yaml", "kuberay-cluster.yaml", "kuberay-job.yaml", "slurm.sh", "Containerfile",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_opens_with_how_to_use_it_and_what_to_edit(path):
    head = path.read_text().removeprefix("#!/usr/bin/env bash\n").partition("\n\n")[0]
    comment = "".join(line for line in head.splitlines(keepends=True) if line.startswith("#"))
    assert comment.startswith("# ") and "What to edit" in comment and f"cluster/{path.name}" in comment
    guide = (CLUSTER / "README.md").read_text()
    assert f"({path.name})" in guide, "the guide leads to it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_versions_are_those_of_the_lock_file(path):
    locked, text = {**entries("requirements.lock"), "statten": PROJECT["version"]}, path.read_text()
    for name, version in re.findall(r"\b(ray|torch|optuna|rayVersion)\W{1,3}(\d+\.\d+\.\d+)", text):
        wanted = {"rayVersion": "ray"}.get(name, name)
        assert version == locked[wanted], f"{path.name} says {name} {version}"
        pinned = next(Requirement(r) for r in PROJECT["dependencies"] if Requirement(r).name == wanted)
        assert version in pinned.specifier
    assert {*re.findall(r"REGISTRY/\S+", text)} <= {IMAGE}
    assert "ray" in text and "latest" not in text


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_a_launcher_file_is_what_ray_reads(path):
    config = yaml.safe_load(path.read_text())
    full = prepare_config(json.loads(json.dumps(config)))
    validate_config(full)
    assert full["head_node_type"] in full["available_node_types"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    heads, workers = full["head_start_ray_commands"], full["worker_start_ray_commands"]
    for start in (heads[-1], workers[-1]):
        assert "RAY_AUTH_MODE=token" in start and "STATTEN_STORAGE=" in start
    assert "--dashboard-host=127.0.0.1" in heads[-1] and "--autoscaling-config=~/ray_bootstrap_config.yaml" in heads[-1]
    assert "$RAY_HEAD_IP:6379" in workers[-1]
    for command in [*heads, *workers, *config["setup_commands"], *config.get("head_setup_commands", [])]:
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)


def test_a_script_takes_no_setting_from_a_name_of_others():
    """Slurm sets ENVIRONMENT in every batch job, Kubernetes a PORT for every service."""
    for path in SCRIPTS:
        names = {name for name in re.findall(r"\$\{([A-Z_]+):?-", path.read_text()) if not name.startswith("SLURM_")}
        assert names and all(name.startswith(("STATTEN_", "LOCAL_SH_", "GLOO_", "NCCL_")) for name in names), names


def test_a_job_of_slurm_goes_on_in_the_same_files():
    text = (CLUSTER / "slurm.sh").read_text()
    assert "#SBATCH --requeue\n" in text and "#SBATCH --open-mode=append" in text
    assert not re.search(r"[^>]>\"slurm-", text), "a requeue would empty the log"


def test_a_mistake_in_a_launcher_file_is_noticed():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    config["idle_timeout"] = config.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config(config))


def test_aws_takes_its_machines():
    """Against EC2's own description of what RunInstances takes."""
    shape = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    types = yaml.safe_load((CLUSTER / "aws.yaml").read_text())["available_node_types"]
    for name, kind in types.items():
        validate_parameters({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        spot = kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert spot is (name != "head"), "workers may be lost, the head may not"
    with pytest.raises(botocore.exceptions.ParamValidationError):
        validate_parameters({"InstanceTyp": "m6i.large", "MinCount": 1, "MaxCount": 1}, shape)


def test_google_workers_are_spot_machines_with_gpus():
    types = yaml.safe_load((CLUSTER / "gcp.yaml").read_text())["available_node_types"]
    for name, kind in types.items():
        scheduling = {key: value for each in kind["node_config"].get("scheduling", []) for key, value in each.items()}
        assert scheduling.get("preemptible", False) is (name != "head")
        assert ("GPU" in kind["resources"]) is (name != "head")
    accelerator = types["gpu_4xt4"]["node_config"]["guestAccelerators"][0]
    assert accelerator["acceleratorCount"] == types["gpu_4xt4"]["resources"]["GPU"]


def strict(schema):
    """Kubernetes refuses unknown fields (or drops them): so does the schema, where it lists fields at all."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(value) for name, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    return closed


@pytest.fixture(scope="module")
def ray_job():
    return strict(json.loads((Path(__file__).parent / "kuberay-rayjob.v1.schema.json").read_text()))


def cluster_spec(document):
    return document["spec"] if document["kind"] == "RayCluster" else document["spec"]["rayClusterSpec"]


def test_kuberay_takes_both_manifests(ray_job):
    claim, cluster = yaml.safe_load_all((CLUSTER / "kuberay-cluster.yaml").read_text())
    job = yaml.safe_load((CLUSTER / "kuberay-job.yaml").read_text())
    spec = ray_job["properties"]["spec"]
    jsonschema.validate(job, ray_job)
    jsonschema.validate(cluster["spec"], spec["properties"]["rayClusterSpec"])
    assert (cluster["apiVersion"], cluster["kind"], job["kind"]) == ("ray.io/v1", "RayCluster", "RayJob")
    assert claim["kind"] == "PersistentVolumeClaim" and claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for document in (cluster, job):
        each = cluster_spec(document)
        assert each["authOptions"] == {"mode": "token"} and each["enableInTreeAutoscaling"]
        for group in [each["headGroupSpec"], *each["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
            resources = pod["containers"][0]["resources"]
            assert resources["requests"] == resources["limits"], "Ray believes what it was given"
        assert each["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    words = job["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "statten.cli", "run"] and "--resume" in words
    assert (ROOT / Path(words[4]).relative_to("/statten")).is_file()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("authOptions", "mode"), "tokens"),
        (("enableAutoscaling",), True),
        (("headGroupSpec", "template", "spec", "volume"), []),
    ],
)
def test_a_mistake_in_a_manifest_is_noticed(ray_job, place, value):
    job = json.loads(json.dumps(yaml.safe_load((CLUSTER / "kuberay-job.yaml").read_text())))
    inner = job["spec"]["rayClusterSpec"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError, match=str(place[-1] if value != "tokens" else value)):
        jsonschema.validate(job, ray_job)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(shellcheck), "--severity=style", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert path.stat().st_mode & 0o111, "can be run"


def test_the_image_holds_the_locked_packages():
    text = (CLUSTER / "Containerfile").read_text()
    copied = re.findall(r"^COPY (.+) \./?$", text, flags=re.M)
    assert copied == ["requirements.lock requirements-cuda.lock", "."]
    assert all((ROOT / name).is_file() for name in copied[0].split())
    assert text.count("--require-hashes -r requirements") == 2
    version = re.search(r"^FROM python:(\d+\.\d+)-", text, flags=re.M)[1]
    assert version == re.search(r"--python-version (\S+)", (ROOT / "Makefile").read_text())[1]
    left_out = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs", ".env*", "**/*.pem", "**/*token*"} <= set(left_out)


def test_a_dashboard_is_never_open():
    """It listens on loopback, or in a cluster's own network, and then asks for the token."""
    for path in FILES:
        for host in re.findall(r"dashboard-host[=:] *\"?([\d.]+)", path.read_text()):
            assert host == "127.0.0.1" or "mode: token" in path.read_text(), path.name
