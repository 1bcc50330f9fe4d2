"""The examples for Kubernetes and Slurm: manifests against the published schemas, configurations against ours, the script by a
stand-in for Slurm's commands."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from navit_loader import LoaderConfig
from navit_loader.cli import parser
from navit_loader.service.server import DRAIN_S
from navit_model.train.settings import RunConfig

EXAMPLES = Path(__file__).parent.parent / "examples"
MANIFESTS = [
    (path.name, part)
    for path in sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
    for part in yaml.safe_load_all(path.read_text())
]


def kinds(kind: str, file: str) -> list[dict[str, Any]]:
    return [part for name, part in MANIFESTS if name == file and part["kind"] == kind]


def check(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    "part", [part for _, part in MANIFESTS if part["kind"] != "RayJob"], ids=lambda part: part["kind"]
)
def test_a_manifest_is_what_kubernetes_publishes(part: dict[str, Any]) -> None:
    check(part)


def test_the_schemas_find_mistakes() -> None:
    part = kinds("StatefulSet", "daemons.yaml")[0]
    part = part | {"spec": part["spec"] | {"terminationGracePeriodSecond": 75}}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(part)


def test_the_pods_of_the_ray_job_are_pods_and_its_command_is_one() -> None:
    """KubeRay's own schema is in no package; what it wraps is Kubernetes'."""
    job = kinds("RayJob", "ray.yaml")[0]
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]})
    command, *args = job["spec"]["entrypoint"].split()
    assert command == "navit-loader"
    found = parser().parse_args(args)
    workers = cluster["workerGroupSpecs"][0]
    assert found.daemons == f"{workers['minReplicas']}:{workers['maxReplicas']}"
    config = served()
    assert workers["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == str(config.render.threads)


def served() -> LoaderConfig:
    return LoaderConfig.from_dict(tomllib.loads(kinds("ConfigMap", "daemons.yaml")[0]["data"]["train.toml"]))


def test_the_parts_of_the_daemons_fit_one_another() -> None:
    config, pods = served(), kinds("StatefulSet", "daemons.yaml")[0]["spec"]["template"]["spec"]
    daemon = pods["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in daemon["ports"]}
    assert config.serve.bind == f"tcp://0.0.0.0:{ports['batches']}"
    assert config.serve.metrics == f"0.0.0.0:{ports['metrics']}"
    assert pods["terminationGracePeriodSeconds"] > DRAIN_S
    mounts = {mount["name"]: mount["mountPath"] for mount in daemon["volumeMounts"]}
    assert mounts == mounts | {volume["name"]: mounts[volume["name"]] for volume in pods["volumes"]}
    assert daemon["args"] == [f"{mounts['config']}/train.toml"] and config.serve.keys == mounts["keys"]
    assert {daemon[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")} == {
        "/live",
        "/ready",
    }
    service = kinds("Service", "daemons.yaml")[0]
    assert service["spec"]["clusterIP"] == "None"


def test_the_trainer_asks_the_daemons_for_their_plan(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(kinds("ConfigMap", "trainer.yaml")[0]["data"]["run.toml"])
    run = RunConfig.from_toml(path)
    config = served()
    assert run.loader.plan == config.plan and run.loader.data.batch_size == config.data.batch_size
    service = kinds("Service", "daemons.yaml")[0]
    assert run.loader.data.endpoints == (f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}",)


STAND_IN = {
    "scontrol": """test "$1 $2" = "show hostnames"
case $3 in node*) printf "node%s\\n" 01 02 03 04 07;; *) printf "gpu%s\\n" 1 2;; esac""",
    "srun": f"""exec {sys.executable} - "$@" <<'END'
import os, signal, sys, time
if "--job-name=daemons" in sys.argv:
    def stop(*_):
        os.write(1, b"DRAINED\\n"); sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
os.write(1, " ".join(["SRUN", *sys.argv[1:], "\\n"]).encode())
if "--job-name=daemons" in sys.argv:
    time.sleep(60)
time.sleep(1)
sys.exit(int(os.environ["TRAINER_ENDS"]))
END""",
}


@pytest.mark.parametrize("status", [0, 3])
def test_the_script_for_slurm_hands_endpoints_and_keys_over(tmp_path: Path, status: int) -> None:
    for name, words in STAND_IN.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{words}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "navit-loader").symlink_to(Path(sys.executable).parent / "navit-loader")
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "TRAINER_ENDS": str(status)}
    env |= {"SLURM_JOB_ID": "17", "SLURM_HET_SIZE": "2"}
    env |= {"SLURM_JOB_NODELIST_HET_GROUP_0": "node[01-04,07]", "SLURM_JOB_NODELIST_HET_GROUP_1": "gpu[1-2]"}
    command = ["bash", str(EXAMPLES / "slurm" / "train.sbatch"), "train.toml", "run.toml"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done
    lines = done.stdout.splitlines()
    daemons = next(line.split() for line in lines if "--job-name=daemons" in line)
    trainers = next(line for line in lines if "--job-name=trainers" in line)
    assert daemons[1:5] == ["--het-group=0", "--nodes=5", "--ntasks=5", "--nodelist=node01,node02,node03,node04,node07"]
    assert "--het-group=1 --nodes=2 --ntasks=2 --nodelist=gpu1,gpu2" in trainers and "gpu1:29400" in trainers
    hosts = [f"node{n}" for n in ("01", "02", "03", "04", "07")]
    change = trainers[trainers.index("data.endpoints=") : trainers.index(" data.remote.keys")]
    path = tmp_path / "run.toml"
    path.write_text("[data]\n[train]\nsteps = 1\n")
    assert RunConfig.from_toml(path, [change]).loader.data.endpoints == tuple(f"tcp://{host}:5780" for host in hosts)
    assert lines[-1] == "DRAINED"
    assert not list(tmp_path.glob(".navit-*")), "its keys are gone"
