"""The core installation: what setup.py requires without an extra is enough for these commands.

A fresh environment is simulated: in the commands' process no distribution can be imported but those
that the core's requirements lead to.
"""

import subprocess
import sys
from importlib.metadata import distribution, distributions, packages_distributions

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BLOCKED = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Absent())
sys.argv[0] = "ida-jax"
runpy.run_module("ida_jax", run_name="__main__", alter_sys=False)
"""


def _core() -> set[str]:
    """The distributions that ida_jax requires without an extra, and theirs."""
    known = {canonicalize_name(found.metadata["Name"]) for found in distributions()}
    needed, waiting = set(), [("ida-jax", frozenset())]
    while waiting:
        name, extras = waiting.pop()
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            )
            other = canonicalize_name(requirement.name)
            if wanted and other in known and other not in needed:
                needed.add(other)
                waiting.append((other, frozenset(requirement.extras)))
    return needed


@pytest.fixture(scope="module")
def blocked():
    core = _core()
    assert {"jax", "flax", "pyarrow", "matplotlib"} <= core
    assert not core & {"tensorflow-datasets", "grain", "opencv-python-headless", "scann", "onnx"}
    absent = set()
    for module, names in packages_distributions().items():
        if not {canonicalize_name(name) for name in names} & {*core, "ida-jax", "setuptools"}:
            absent.add(module)
    assert {"cv2", "grain", "tensorflow_datasets", "onnx"} <= absent
    return ",".join(sorted(absent))


@pytest.fixture
def command(blocked, tmp_path):
    def run(*flags, code=0):
        done = subprocess.run(
            [sys.executable, "-c", BLOCKED, blocked, *flags],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stderr[-2000:]
        return done.stdout + done.stderr

    return run


def test_rescoring_evaluation_and_ida_l_need_the_core_alone(command, tmp_path):
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(30), 4)
    centres = rng.normal(size=(30, 16))
    faces = (centres[people] + 0.5 * rng.normal(size=(120, 16))).astype(np.float32)
    np.save(tmp_path / "faces.npy", faces)
    np.save(tmp_path / "anchors.npy", rng.normal(size=(50, 16)).astype(np.float32))
    pairs = np.stack(np.triu_indices(120, 1), axis=1)
    np.save(tmp_path / "pairs.npy", pairs)
    np.save(tmp_path / "same.npy", people[pairs[:, 0]] == people[pairs[:, 1]])
    (tmp_path / "names.txt").write_text("".join(f"p{p}/{i}.jpg\n" for i, p in enumerate(people)))

    command("anchors", "build", "--embeddings=anchors.npy", "--output=anchors.safetensors")
    scored = ("--embeddings=faces.npy", "--anchors=anchors.safetensors")
    command("rescore", *scored, "--pairs=pairs.npy", "--output=scores.npy")
    assert np.isfinite(np.load(tmp_path / "scores.npy")).all()
    command("evaluate", "--scores=scores.npy", "--labels=same.npy", "--resamples=20",
            "--fit=logistic", "--calibration=c.safetensors")  # fmt: skip
    command("evaluate", "--protocol=all_pairs", *scored, "--names=names.txt", "--fars=0.01",
            "--methods=cosine,ida_r,as_norm", "--resamples=20", "--output=report")  # fmt: skip
    assert (tmp_path / "report" / "report.html").is_file()
    said = command("train", "--config=ssr_from_embeddings:smoke", "--workdir=run",
                   "--config.ssr.steps=4", "--config.ssr.decay_steps=(2,)")  # fmt: skip
    assert "no TensorBoard files without tensorboardX" in said
    assert (tmp_path / "run" / "ssr.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "extra"),
    [
        (("export", "--model=m.onnx", "--output=m.safetensors"), "interop"),
        (("train", "--config=quickstart", "--workdir=run"), "train"),
        (("prepare", "folder", "--from=faces", "--name=x"), "train"),
    ],
)
def test_what_else_is_needed_is_named(command, tmp_path, flags, extra):
    (tmp_path / "m.onnx").write_bytes(b"x" * 100)
    (tmp_path / "faces" / "a").mkdir(parents=True)
    (tmp_path / "faces" / "a" / "1.jpg").write_bytes(b"x")
    said = command(*flags, code=2)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].endswith(f"pip install 'ida_jax[{extra}]'")
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
