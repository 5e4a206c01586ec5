"""`rescore --engine=ray`: the same bytes as without Ray, also where an actor is killed.

Ray is in an extra of its own: these tests run where it is installed.
"""

import os
import signal
import warnings

import numpy as np
import pytest
import reference

from ida_jax import rescore
from ida_jax.common.errors import UserError, exit_code
from ida_jax.rescoring.batch import BatchFaceTerms
from ida_jax.rescoring.job import JobFiles, rescore_files
from ida_jax.rescoring.rescorer import Rescorer

pytest.importorskip("ray", reason="Ray is in the extra [ray], not in [test]")


@pytest.fixture(scope="module", autouse=True)
def _ray():
    import ray

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        yield
        ray.shutdown()


@pytest.fixture
def files(tmp_path):
    """70 faces, so few that tiles of products are taken."""
    np.save(tmp_path / "faces.npy", reference.unit((70, 16), 1, clusters=5))
    np.save(tmp_path / "anchors.npy", reference.unit((200, 16), 0, clusters=5))
    pairs = np.random.default_rng(2).integers(70, size=(1501, 2))
    np.save(tmp_path / "pairs.npy", pairs)
    return tmp_path


def _flags(folder, output, *more):
    names = ("embeddings", "pairs", "anchors")
    stems = ("faces", "pairs", "anchors")
    flags = [f"--{n}={folder / s}.npy" for n, s in zip(names, stems, strict=True)]
    return [*flags, f"--output={folder / output}", "--chunk=500", *more]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("named", [70, 40])
def test_the_same_bytes(files, named, capsys):
    if named < 70:  # the other faces are not read, here or there: one is bad
        np.save(files / "pairs.npy", np.load(files / "pairs.npy") % named + 3)
        faces = np.load(files / "faces.npy")
        faces[0] = np.nan
        np.save(files / "faces.npy", faces)
    rescore.main(_flags(files, "plain.npy", "--method=as_norm", "--top_n=40"))
    ray = ("--method=as_norm", "--top_n=40", "--engine=ray", "--actors=2")
    rescore.main(_flags(files, "ray.npy", *ray))
    assert (files / "ray.npy").read_bytes() == (files / "plain.npy").read_bytes()
    assert "1,501 scores by as_norm" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_an_actor_that_is_killed(files):
    from ida_jax.rescoring.ray_engine import RayEngine

    rescore.main(_flags(files, "plain.npy"))
    killed = files / "killed"

    def finish(scores):
        try:
            killed.touch(exist_ok=False)
        except FileExistsError:
            return scores
        os.kill(os.getpid(), signal.SIGKILL)

    anchors = files / "anchors.npy"
    output = files / "ray.npy"
    rescore_files(
        JobFiles(files / "faces.npy", files / "pairs.npy"),
        output,
        lambda faces: Rescorer(anchors),
        settings={"killed": True},
        finish=finish,
        chunk=500,
        make_engine=lambda faces: RayEngine(BatchFaceTerms(anchors), actors=2),
    )
    assert killed.exists()
    assert output.read_bytes() == (files / "plain.npy").read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_a_mistake_in_an_actor_is_the_drivers(files):
    from ida_jax.rescoring.ray_engine import RayEngine

    def finish(scores):
        raise UserError("no such scale")

    anchors = files / "anchors.npy"
    with pytest.raises(UserError) as raised:
        rescore_files(
            JobFiles(files / "faces.npy", files / "pairs.npy"),
            files / "ray.npy",
            lambda faces: Rescorer(anchors),
            settings={"mistaken": True},
            finish=finish,
            chunk=500,
            make_engine=lambda faces: RayEngine(BatchFaceTerms(anchors)),
        )
    assert str(raised.value) == "no such scale"
    assert not (files / "ray.npy").exists()


def test_a_mistake_is_one_line(files, capsys):
    flags = _flags(files, "ray.npy", "--actors=2")
    assert exit_code(lambda: rescore.main(flags)) == 2
    assert capsys.readouterr().err == "error: --actors=2: expected 1 or more, with --engine=ray\n"
