"""Trained runs behind the paper's tables and figures, and protocols evaluated on them.

Everything lies in --workdir and is made once: scripts that need the same run share it, and an
interrupted one goes on.

N faces, D embedding.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from paper import require

from ida_jax.common.errors import UserError
from ida_jax.common.files import written_whole
from ida_jax.rescoring.methods import make_scorers
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.runs import stages
from ida_jax.runs.run import Run
from ida_jax.runs.workdir import MODEL, RESULTS, claim_workdir, read_results
from ida_jax.training.recognition import train

METHODS = ("cosine", "ida_r", "ida_l")
# Fig. 8's moments of the training.
MOMENTS = (0.4, 0.7, 1.0)
# A short training of small images at s = 32 takes smaller margins than the articles'.
_MARGINS = {"l2_softmax": 0.0, "cosface": 0.2, "arcface": 0.3}
_CONFIGS = Path(__file__).parents[1] / "configs"


class Set(NamedTuple):
    """Faces to evaluate on, and the run that embeds them."""

    name: str
    run: Run
    faces: np.ndarray
    labels: np.ndarray


def rendered_run(options: Any, head: str = "arcface") -> Run:
    """The quickstart's run with a head, trained, its anchors and SSR module made, evaluated.

    The ArcFace one keeps its states at `MOMENTS` of the training, and has PFE and templates.
    """
    smoke = options.scale == "smoke"
    config = load_config("quickstart", "smoke" if smoke else "")
    config.stages = ("train", "anchors", "ssr", "evaluate")
    if head == "arcface":
        config.stages = ("train", "anchors", "ssr", "pfe", "evaluate")
        # Of 7,000 faces too, the authors' recipe would be learnt by heart.
        config.pfe.update(load_config("lfw_pfe").pfe)
        config.evaluate.template_size = 5
    config.train.head, config.train.margin = head, _MARGINS[head]
    config.train.verify_every = 0
    if smoke:
        config.train.steps, config.train.checkpoint_every = 5, 5
        config.pfe.steps, config.pfe.identities = 2, 8
    config.evaluate.methods, config.evaluate.sweeps = METHODS, False
    return _finished(config, options, f"{options.scale}_{head}", keep=head == "arcface")


def paper_run(options: Any, name: str, *, keep: bool = False) -> Run:
    """configs/NAME.py in WORKDIR/NAME, which ida_jax.main may have run before.

    Args:
      name: the config's and the workdir's name.
      keep: whether the states at `MOMENTS` are kept.
    """
    config = load_config(name)
    config.data_dir = str(options.data_dir)
    return _finished(config, options, name, keep=keep)


def require_paper(
    options: Any, names: Sequence[str], protocols: Sequence[str] = (), *, faces: bool = False
) -> None:
    """Ends the process, naming everything that is missing of paper runs and of protocols on them.

    Args:
      names: the configs.
      protocols: as in `evaluated`.
      faces: whether the training set is looked at even where all is trained.
    """
    needed: dict[Path, str] = {}
    for name in names:
        data = load_config(name).train_data.dataset
        workdir = options.workdir / name
        if faces or not (workdir / RESULTS).is_file():
            of = needed.get(options.data_dir / data, "the training set of")
            needed[options.data_dir / data] = f"{of} configs/{name}.py"
            needed[options.data_dir / "lfw" / "pairs.txt"] = "LFW, which the run is verified on"
        for protocol in protocols:
            flip = load_config(name).flip
            needed |= protocol_files(options, workdir, protocol, flip=flip)
    require(needed)


def _finished(config: ConfigDict, options: Any, name: str, *, keep: bool) -> Run:
    workdir = options.workdir / name
    options.workdir.mkdir(parents=True, exist_ok=True)
    # The step is compiled once, and not by each script and each moment again.
    jax.config.update("jax_compilation_cache_dir", str(options.workdir / "compiled"))
    claim_workdir(workdir, config, stages.STAGES)
    run = Run(config, workdir)
    for path, step in moments(run).items() if keep else ():
        if not path.is_file():
            reached = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
            if max(reached, default=0) > step:
                raise UserError(
                    f"no {path}: {workdir} is past step {step} and has not kept that state; take "
                    "another --workdir"
                )
            until = config.copy_and_resolve_references()
            until.train.steps = step
            train(run.train_faces, until, workdir=workdir).save(path)
    stages.run(config, workdir)
    return run


def moments(run: Run) -> dict[Path, int]:
    """{the model's file: its step} at `MOMENTS`."""
    steps = [round(moment * run.config.train.steps) for moment in MOMENTS]
    return {run.workdir / f"model-{step}.safetensors": step for step in steps}


def lfw_run(options: Any) -> Run | None:
    """The given MobileFaceNet on LFW's anchor half (configs/lfw_pretrained.py), up to its SSR
    module; None where --data_dir lacks it, and at smoke scale."""
    return _lfw(options, "lfw_pretrained", "lfw_mobilefacenet", ("import", "anchors", "ssr"))


def lfw_pfe_run(options: Any) -> Run | None:
    """The same with PFE (configs/lfw_pfe.py), evaluated."""
    return _lfw(options, "lfw_pfe", "lfw_pfe", ("import", "anchors", "ssr", "pfe", "evaluate"))


def _lfw(options: Any, name: str, workdir: str, stages: tuple[str, ...]) -> Run | None:
    needed = ("lfw/lfw_112.tar", "lfw/split.csv", "weights/mobilefacenet.npz")
    if options.scale == "smoke" or not all((options.data_dir / f).is_file() for f in needed):
        return None
    config = load_config(name)
    config.data_dir, config.stages = str(options.data_dir), stages
    return _finished(config, options, workdir, keep=False)


def sets(options: Any) -> list[Set]:
    """The small scale's sets: the rendered run's evaluation faces, and LFW's half where it is."""
    runs = {"rendered": rendered_run(options), "lfw": lfw_run(options)}
    return [
        Set(name, run, eval_embeddings(run), run.eval_faces.labels)
        for name, run in runs.items()
        if run is not None
    ]


def eval_embeddings(run: Run) -> np.ndarray:
    """The evaluation faces' unit embeddings, float32 [N, D], embedded once a workdir."""
    path = run.workdir / f"eval-{run.model.fingerprint}.npy"
    if not path.is_file():
        embeddings = run.embed(run.eval_faces.images, "embed the evaluation set")
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.save(file, embeddings)
    return np.load(path)


def scorers(run: Run, methods: Sequence[str] = METHODS) -> dict[str, Rescorer]:
    """Each method against the run's anchors."""
    c = run.config
    ssr = run.ssr if "ida_l" in methods else None
    return make_scorers(methods, run.anchors, k=c.k, tau=c.tau, ssr=ssr, searcher=c.searcher)


def evaluated(
    options: Any, run: Run, protocol: str, *, ending: str = "", **flags: str | Path
) -> dict[str, Any]:
    """The figures {method: …} of a protocol by ida-jax evaluate, kept in the workdir.

    Embeddings are WORKDIR/NAME/PROTOCOL.npy (facescrub.npy and megaface.npy of MegaFace).

    Args:
      run: whose anchors and modules.
      protocol: lfw, calfw, ytf, ijbb, ijbc or megaface.
      ending: of the results' folder, where flags differ.
      **flags: further ones.
    """
    folder = run.workdir / f"evaluated_{protocol}{ending}"
    if not (folder / RESULTS).is_file():
        from ida_jax.runs.protocol_command import main

        own = "facescrub" if protocol == "megaface" else protocol
        given: dict[str, str | Path] = {
            "protocol": protocol,
            "files": options.data_dir / protocol,
            "embeddings": run.workdir / f"{own}.npy",
            "run": run.workdir,
            "methods": ",".join(METHODS),
            "output": folder,
        }
        if protocol in ("ijbb", "ijbc") and run.config.flip:
            given["flip"] = "added"
        if protocol == "megaface":
            given["distractors"] = run.workdir / "megaface.npy"
        if protocol == "ytf":
            given["files"] = options.data_dir / "ytf" / "splits.txt"
        main([f"--{flag}={value}" for flag, value in (given | flags).items()])
    results = read_results(folder)
    return first_variant(results["protocols"])


def first_variant(protocols: Mapping[str, Any]) -> Any:
    """The one variant of a protocol that the paper has: 1:1 of IJB's, the mean feature of YTF's."""
    for part in ("1to1", "mean_feature"):
        for name, figures in protocols.items():
            if part in name:
                return figures
    return next(iter(protocols.values()))


def protocol_files(options: Any, workdir: Path, protocol: str, *, flip: bool) -> dict[Path, str]:
    """{path: what it is} of a protocol's lists and of the embeddings of its images.

    With `flip`, as the run's anchors are, they have the mirror images' added.
    """
    lists = {
        "lfw": ("lfw/pairs.txt", "LFW's own pairs"),
        "calfw": ("calfw/pairs_CALFW.txt", "CALFW's own pairs"),
        "ytf": ("ytf/splits.txt", "YouTube Faces' own pairs"),
        "ijbb": ("ijbb/meta", "IJB-B's release"),
        "ijbc": ("ijbc/meta", "IJB-C's release"),
        "megaface": ("megaface", "MegaFace's lists and noise lists"),
    }
    path, what = lists[protocol]
    images = ("facescrub", "megaface") if protocol == "megaface" else (protocol,)
    model = workdir / MODEL
    embed = f"ida-jax embed --model={model} --images={options.data_dir}/… "
    if protocol in ("ijbb", "ijbc"):
        points = options.data_dir / protocol / "meta" / f"{protocol}_name_5pts_score.txt"
        embed += f"--landmarks={points} "
    embed += f"{'--flip ' if flip else ''}--output="
    return {
        options.data_dir / path: what,
        **{
            (out := workdir / f"{name}.npy"): f"embeddings of {name}'s images, by {embed}{out}"
            for name in images
        },
    }


def load_config(name: str, variant: str = "") -> ConfigDict:
    """configs/NAME.py's config."""
    spec = importlib.util.spec_from_file_location(name, _CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)
