"""No command overwrites what it reads; one that writes where another does ends at once."""

import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ida_jax import (
    check_labels,
    embed,
    enrol,
    evaluate,
    export,
    fit,
    identify,
    plan,
    prepare,
    rescore,
)
from ida_jax.anchors.__main__ import main as anchors_main
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.runs.workdir import workdir_of_one_job

# Each line: the command, the flag that writes, the flag that reads, and the file that is both.
_RESCORE = "--embeddings=E.npy --pairs=P.npy --anchors=A.npy"
_FIT = "--embeddings=E.npy --labels=L.npy --anchors=A.npy"
_SCORES = "--scores=S.npy --labels=Y.npy"
_LISTED = "--protocol=all_pairs --embeddings=N.npz --anchors=A.npy"
CASES = [
    ("rescore", _RESCORE, "--output", ["E.npy", "P.npy", "A.npy", "./E.npy", "link.npy"]),
    ("rescore", f"{_RESCORE} --names=N.csv", "--output", ["N.csv"]),
    ("rescore", "--embeddings=E.npy --pairs=P.npy --method=csn --csn=C.npy", "--output", ["C.npy"]),
    ("enrol", "--embeddings=N.npz --anchors=A.npy", "--gallery", ["A.npy"]),
    ("enrol", "--embeddings=W/e.npy --names=N.csv --anchors=A.npy", "--gallery", ["W"]),
    ("identify", "--gallery=W --probes=E.npy --anchors=A.npy --names=N.csv", "--output", ["N.csv"]),
    ("identify", "--gallery=W --probes=E.npy --labels=N.csv --output=O.csv", "--json", ["N.csv"]),
    ("embed", "--model=M.safetensors --images=E.names.txt", "--output", ["E.npy"]),
    ("embed", "--model=M.safetensors --images=I --landmarks=E.names.txt", "--output", ["E.npy"]),
    ("embed", "--model=M.safetensors --images=I --pfe=E.npy", "--output", ["E.npy"]),
    ("prepare bin", "--images=I --pairs=pairs.csv", "--output", ["pairs.csv"]),
    ("prepare bin", "--images=I.tar --pairs=pairs.csv", "--output", ["I.tar"]),
    ("prepare folder", "--from=I --name=x", "--data_dir", ["I", "I/ann", "linked"]),
    ("prepare bin", "--from=D/y/incomplete/y.bin --name=y", "--data_dir", ["D"]),
    ("prepare recordio", "--from=D/y/incomplete --name=y", "--data_dir", ["D"]),
    ("anchors build", "--embeddings=A.safetensors", "--output", ["A.safetensors"]),
    ("anchors build", "--model=M.safetensors --class_weights", "--output", ["M.safetensors"]),
    ("anchors build", "--model=W --class_weights", "--output", ["W/model.safetensors"]),
    ("anchors fake", "--model=W --generator=G.safetensors", "--output",
     ["W/model.safetensors", "G.safetensors"]),
    ("anchors fake", "--model=W --generator=G.safetensors --training=T.report.html", "--output",
     ["T.safetensors"]),
    ("anchors check", "--anchors=A.safetensors --against=E.npy", "--json",
     ["A.safetensors", "E.npy", "link.npy"]),
    ("anchors check", "--anchors=A.safetensors --against=E.npy --labels=L.npy", "--json",
     ["L.npy"]),
    ("export", "--model=M.safetensors", "--output", ["M.safetensors"]),
    ("export", "--model=W", "--output", ["W/model.safetensors"]),
    ("export", "--model=W --ssr=G.stablehlo.json", "--output", ["G.stablehlo"]),
    ("evaluate", _SCORES, "--json", ["S.npy", "Y.npy"]),
    ("evaluate", f"{_SCORES} --groups=G.png", "--plot", ["G.png"]),
    ("evaluate", f"{_SCORES} --fit=logistic", "--calibration", ["S.npy", "Y.npy"]),
    ("evaluate", f"{_SCORES} --baseline=E.npy", "--json", ["E.npy"]),
    ("evaluate", f"{_SCORES} --identities=E.npy", "--json", ["E.npy"]),
    ("evaluate", f"{_SCORES} --fit=logistic --json=new", "--calibration", ["new"]),
    ("evaluate", f"{_LISTED} --groups=W/results.md", "--output", ["W"]),
    ("evaluate", f"{_SCORES} --identities=E.npy --ignore_identity_pairs=N.csv", "--json",
     ["N.csv"]),
    ("evaluate", f"{_LISTED} --ignore_identity_pairs=W/results.md", "--output", ["W"]),
    ("check_labels", "--embeddings=E.npy --labels=W/candidates.html", "--output", ["W"]),
    ("plan", "--topology=cpu:1 --config=T.report.html", "--json", ["T.report.html"]),
    ("plan", "--topology=cpu:1 --config=./N.csv:smoke", "--json", ["N.csv"]),
    ("fit csn", _FIT, "--output", ["E.npy", "L.npy", "A.npy"]),
    ("fit dao", _FIT, "--output", ["E.npy", "L.npy", "A.npy"]),
]  # fmt: skip
_MAINS = {"enrol": enrol.main, "identify": identify.main, "rescore": rescore.main,
          "check_labels": check_labels.main, "embed": embed.main,
          "prepare": prepare.main, "anchors": anchors_main, "export": export.main,
          "evaluate": evaluate.main, "fit": fit.main, "plan": plan.main}  # fmt: skip


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Some files of every kind; those that a command must not come to read are not whole."""
    rng = np.random.default_rng(0)
    faces = rng.standard_normal((6, 4)).astype(np.float32)
    for name, array in {
        "E": faces, "A": rng.standard_normal((9, 4)).astype(np.float32),
        "P": np.array([[0, 1], [2, 3]]), "L": np.arange(6), "S": rng.random(6),
        "Y": np.array([1, 1, 0, 0, 0, 0]), "C": faces,
    }.items():  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "N.npz", embeddings=faces, names=[f"{i // 2}/{i}" for i in range(6)])
    AnchorSet.from_embeddings(faces).save(tmp_path / "A.safetensors")
    for folder in ("I/ann", "W", "D/x/1.0.0/ann", "D/y/incomplete"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "I/ann/a.png")
    for name in ("M.safetensors", "G.safetensors", "T.safetensors", "T.report.html", "I.tar",
                 "W/model.safetensors", "W/results.md", "W/candidates.html", "G.stablehlo.json",
                 "G.png", "N.csv",
                 "E.names.txt", "pairs.csv", "D/y/incomplete/train.rec",
                 "D/y/incomplete/train.idx", "D/y/incomplete/y.bin"):  # fmt: skip
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "link.npy").symlink_to("E.npy")
    (tmp_path / "linked").symlink_to("I")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _content(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("command", "flags", "flag", "path"),
    [(*case[:3], path) for case in CASES for path in case[3]],
    ids=lambda value: value if "--" not in value or "=" not in value else "",
)
def test_no_command_overwrites_what_it_reads(files, command, flags, flag, path):
    name, *subcommand = command.split()
    before = _content(files)
    with pytest.raises(UserError, match=r"would overwrite|are one file|the next time") as caught:
        _MAINS[name]([*subcommand, *flags.split(), f"{flag}={path}"])
    said = str(caught.value)
    assert flag in said
    assert "\n" not in said
    assert _content(files) == before


def test_a_workdir_does_not_hold_what_its_config_reads(files):
    shutil.copy("E.npy", "W/results.json")
    before = _content(files)
    named = {"embeddings": "W/results.json", "anchors": "A.npy", "labels": None, "stages": ()}
    with (
        pytest.raises(UserError, match=r"--workdir \(its results.json\) would overwrite"),
        workdir_of_one_job(ConfigDict(named), "W"),
    ):
        raise AssertionError
    assert _content(files) == before


_SLOW = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from ida_jax.common.outputs import writing
    folder = Path(sys.argv[2]) if sys.argv[2:] else None
    with writing({"--output": sys.argv[1]}, reading={}, folder=folder):
        print("holds", flush=True)
        time.sleep(120)
""")


@pytest.mark.parametrize(
    ("command", "output", "folder"),
    [
        (f"rescore {_RESCORE} --output=new.npy", "new.npy", None),
        ("embed --model=W --images=I --output=new.npy", "new.npy", None),
        ("embed --model=W --images=I --output=new.npy", "new.names.txt", None),
        ("anchors build --embeddings=E.npy --output=new.safetensors", "new.safetensors", None),
        ("anchors check --anchors=A.safetensors --json=new", "new", None),
        ("export --model=W --output=new.onnx", "new.onnx", None),
        (f"evaluate {_SCORES} --json=new", "new", None),
        (f"evaluate {_LISTED} --output=new", "new/results.json", "new"),
        (f"fit csn {_FIT} --output=new", "new", None),
        ("prepare folder --from=I --name=new --data_dir=data", "data/new/x", "data/new"),
        ("prepare bin --images=I --pairs=pairs.csv --output=new.bin", "new.bin", None),
    ],
    ids=lambda value: value.split(" --")[0] if value and "--" in value else "",
)
def test_a_second_job_on_an_output_ends_at_once(files, command, output, folder):
    holds = [sys.executable, "-c", _SLOW, output, *([folder] if folder else [])]
    process = subprocess.Popen(holds, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "holds\n"
        before = _content(files)
        name, *flags = command.split()
        with pytest.raises(UserError, match=f"is being written by process {process.pid} on"):
            _MAINS[name](flags)
        assert _content(files) == before
    finally:
        process.kill()
        process.wait()
