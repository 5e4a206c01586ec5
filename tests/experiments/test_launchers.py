"""run_slurm.sh and run_pod.sh with stand-ins for srun and gcloud: what they would start."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def run(tmp_path):
    """(script, *arguments, stand-ins by name, **environment) → the finished process."""

    def run(script, *arguments, stand_ins, **environment):
        (tmp_path / "bin").mkdir()
        for name, body in stand_ins.items():
            path = tmp_path / "bin" / name
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        search = f"{tmp_path}/bin:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments],
            env={"PATH": search, "HOME": str(tmp_path), **environment},
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip

    return run


def test_under_slurm_a_task_a_node_has_all_of_its_gpus(run):
    said = run(
        "run_slurm.sh", "c.py", "/runs/a", "--config.title=two words",
        stand_ins={"srun": 'echo "$JAX_LOCAL_DEVICE_IDS"; printf "%s\\n" "$@"'},
        SLURM_GPUS_ON_NODE="4",
    )  # fmt: skip
    assert said.stdout.splitlines() == [
        "0,1,2,3", "--kill-on-bad-exit=1", "python", "-m", "ida_jax.main", "--config=c.py",
        "--workdir=/runs/a", "--config.title=two words",
    ]  # fmt: skip


def test_without_gpus_one_line_says_so(run):
    said = run("run_slurm.sh", "c.py", "/runs/a", stand_ins={})
    assert said.returncode != 0
    assert said.stderr.count("\n") == 1
    assert "submit it with sbatch --gpus-per-node=N" in said.stderr


def test_on_a_pod_every_worker_runs_the_same_command(run, tmp_path):
    (tmp_path / "ida_jax").mkdir()
    echo_and_run = (
        'last="${@: -1}"; echo "${@:1:7}"; '
        'case "$last" in *tail*) ;; *) bash -c "${last#*=}";; esac'
    )
    said = run(
        "run_pod.sh", "c.py", "r100", "--config.title=two words",
        stand_ins={
            "gcloud": echo_and_run, "mountpoint": "exit 1", "gcsfuse": 'echo mounts "$@"',
            "nohup": 'printf "%s\\n" "$@" > ~/started',
        },
        TPU="slice", ZONE="zone", BUCKET="bucket",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "compute tpus tpu-vm ssh slice --zone=zone --worker=all" in said.stdout
    assert f"mounts --implicit-dirs bucket {tmp_path}/bucket" in said.stdout
    for _ in range(200):  # it goes on in the background
        if (tmp_path / "ida_jax.log").exists() and (tmp_path / "started").exists():
            break
        subprocess.run(["sleep", "0.05"])
    assert (tmp_path / "started").read_text().splitlines() == [
        "python", "-m", "ida_jax.main", "--config=c.py", "--workdir=../bucket/runs/r100",
        "--config.title=two words",
    ]  # fmt: skip
