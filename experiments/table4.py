"""Table 4: IDA-R by the anchors' source: class weights, real-db, fake-db.

Command: PYTHONPATH=. python experiments/table4.py --scale=small --data_dir=DATA \
    --output=experiments/results/table4_small.json
paper: ResNet-50 on MS1M by configs/ms1m_arcface.py in WORKDIR, IJB-B in DATA_DIR/ijbb, its images'
embeddings WORKDIR/ms1m_arcface/ijbb.npy; the fake-db is that of configs/stylegan_ms1m.py's run in
WORKDIR/stylegan_ms1m.
small: sets of one size for the given MobileFaceNet, all pairs of LFW's eval half: class weights
fitted to the frozen embeddings of the anchor half, its people's first images, faces of the
generator WORKDIR/stylegan_lfw/generator.safetensors (configs/stylegan_lfw.py), with the fake-db's
checks, aligned and not, and as they come, and rendered faces, the naive alternative. A control:
draws from the normal distribution with the real-db's mean and covariance, which are not faces.
Without LFW or the weights in DATA_DIR, and at smoke scale, the quickstart's recipe and rendered
identities never seen in training. Every difference to the real-db is paired, over the same
resamples of people.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from paper import TABLE4, columns, experiment, percent, require

from ida_jax.common.command_line import Parser
from ida_jax.runs.workdir import ANCHORS
from ida_jax.runs.workdir import GENERATOR as GENERATOR_FILE

FARS = (1e-3, 1e-4, 1e-5)
GENERATOR = "python -m ida_jax.main --config=configs/stylegan_lfw.py --config.data_dir=DATA"
TITLES = {
    "cosine": "none: the cosine",
    "class_weights": "weights of FC layers",
    "real_db": "real-db",
    "fake_db": "fake-db",
    "fake_db_aligned": "fake-db, aligned to real faces' mean and covariance",
    "fake_db_unchecked": "fake-db, faces as they come",
    "rendered": "rendered faces",
    "normal": "no faces: normal draws with the real-db's mean and covariance",
}
# Identities of the rendered population that no training or evaluation set has.
_OTHER_PEOPLE = 1_000_000


class Source(NamedTuple):
    """Where one row's anchors come from: the set, and what is to be recorded of it."""

    anchors: Any
    about: dict[str, Any]


def small(options: Any) -> dict[str, Any]:
    from paper_runs import eval_embeddings

    run = small_run(options)
    faces, notes = eval_embeddings(run), []
    size = len(run.anchors)
    sources = {
        "class_weights": _class_weights(run),
        "real_db": Source(run.anchors, {}),
        **fake_sources(run, options, size, notes),
        "rendered": _rendered(run, size),
        "normal": _normal(run, size),
    }
    figures, more = compare(run, faces, {name: each.anchors for name, each in sources.items()})
    for name, each in sources.items():
        figures[name] |= {"anchors": len(each.anchors), **each.about}
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return {
        "ours": figures,
        "rows": _rows(figures, [f"{far:g}" for far in FARS]),
        "notes": [*notes, *more],
        "differs": [
            f"{run.model.network} in place of ResNet-50, {size} anchors of each source, not 50,000",
            f"all pairs of {len(faces)} faces in place of IJB-B's templates",
            "class weights of a model given without them are fitted to its frozen embeddings",
        ],
    }


def small_run(options: Any) -> Any:
    """The given MobileFaceNet's run on LFW; the quickstart's where there is none."""
    from paper_runs import lfw_run, rendered_run

    return lfw_run(options) or rendered_run(options)


def compare(run: Any, faces: np.ndarray, sets: Mapping[str, Any]) -> tuple[dict[str, Any], list]:
    """IDA-R's figures with each anchor set, and those of the cosine, over all pairs.

    Args:
      run: whose k, τ, evaluation faces' labels and resamples.
      faces: float32 [N, D], its evaluation faces' unit embeddings.
      sets: {name: AnchorSet}, "real_db" among them.

    Returns:
      {name: figures}: TARs with intervals, gains over the cosine, and under "over_real_db" gains
      over the real-db; and notes.
    """
    from ida_jax.protocols.verification import evaluate_all_pairs
    from ida_jax.rescoring.rescorer import Rescorer

    c = run.config
    terms = {"cosine": Rescorer(None, method="cosine").terms(faces)}
    for name, anchors in sets.items():
        terms[name] = Rescorer(anchors, k=c.k, tau=c.tau).terms(faces)
    options = {"fars": FARS, "resamples": c.evaluate.resamples, "seed": c.seed}
    labels = run.eval_faces.labels
    found = evaluate_all_pairs(faces, labels, terms, **options).evaluated
    figures = dict(found.figures)
    # An evaluation's gains are over what it is given as the cosine.
    others = {f"{name} ": each for name, each in terms.items() if name != "real_db"}
    others = {"cosine": terms["real_db"], **others}
    over = evaluate_all_pairs(faces, labels, others, **options).evaluated.figures
    for name in terms:
        gains = over.get(f"{name} ", {})
        figures[name]["over_real_db"] = {key: gains[key] for key in gains if "gain" in key}
    return figures, list(found.notes)


def generator_flag(parser: Parser) -> None:
    """--generator, of this script and fake_db.py."""
    parser.add_argument(
        "--generator", type=Path, metavar="FILE|DIR",
        help="a face generator, or a run's workdir with one (WORKDIR/stylegan_lfw)",
    )  # fmt: skip


def generator_file(options: Any) -> Path:
    """--generator, a file or a run's workdir; that of configs/stylegan_lfw.py in WORKDIR if
    absent."""
    path = getattr(options, "generator", None) or options.workdir / "stylegan_lfw"
    return path if path.suffix == ".safetensors" else path / GENERATOR_FILE


def fake_embeddings(run: Any, generator: Any, count: int, truncation: float = 1.0) -> np.ndarray:
    """The generator's first faces as they come, float32 [count, D]; kept in the run's workdir."""
    from ida_jax.anchors.candidates import embedded_chunks, generated_candidates

    candidates = generated_candidates(generator, seed=run.config.seed, truncation=truncation)
    chunks = embedded_chunks(
        candidates, run.model, stop=count, flip=run.config.flip, parts=run.workdir / "fakes"
    )
    return np.concatenate(list(chunks))


def anchors_of(run: Any, embeddings: np.ndarray, source: str = "fake_db") -> Any:
    """An anchor set of the run's model."""
    from ida_jax.anchors.anchor_set import AnchorSet

    c = run.config
    return AnchorSet.from_embeddings(
        embeddings, source=source, fingerprint=run.model.fingerprint, k=c.k, tau=c.tau
    )


def likeness(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """Fréchet distance, precision and recall of as many faces of both."""
    from ida_jax.metrics.frechet import frechet_distance, precision_recall

    count = min(len(real), len(made))
    real, made = real[:count], made[:count]
    return {
        "frechet": frechet_distance(real, made),
        **precision_recall(real, made)._asdict(),
    }


def fake_sources(run: Any, options: Any, size: int, notes: list[str]) -> dict[str, Source]:
    """The fake-db with its checks, where they leave enough, and as many faces as they come."""
    from ida_jax.anchors.candidates import generated_candidates
    from ida_jax.anchors.fake import fake_anchors
    from ida_jax.anchors.fake_rules import TrainingFaces
    from ida_jax.artefacts.generator import FaceGenerator
    from ida_jax.common.errors import UserError

    path, is_given = generator_file(options), getattr(options, "generator", None) is not None
    if not is_given and not path.is_file():
        notes.append(f"no fake-db: no {path}; train it with {GENERATOR} --workdir={path.parent}")
        return {}
    generator, c = FaceGenerator.load(path), run.config
    side, wanted = generator.image_size, run.model.preprocessing.image_size
    if not is_given and side != wanted:
        notes.append(f"no fake-db: {path} makes crops of {side} px, the model takes {wanted}")
        return {}
    real = np.asarray(run.anchors.embeddings)
    made = fake_embeddings(run, generator, size)
    about = {"generator": generator.fingerprint, "trained": generator.provenance}
    found, training = {}, TrainingFaces(run.train_embeddings, run.train_faces.labels, "train_data")
    for name, align in (("fake_db", False), ("fake_db_aligned", True)):
        try:
            anchors, report = fake_anchors(
                generated_candidates(generator, seed=c.seed), run.model, count=size, flip=c.flip,
                training=training, k=c.k, tau=c.tau, parts=run.workdir / "fakes", align=align,
            )  # fmt: skip
        except UserError as error:
            notes.append(f"no {TITLES[name]}, with its checks: {error}")
            continue
        kept = ("drawn", "dropped", "thresholds", "nearest_training_cosine")
        kept += ("coverage_of_training_people",)
        checked = {key: report.provenance[key] for key in kept}
        found[name] = Source(anchors, about | checked | likeness(real, anchors.embeddings))
    found["fake_db_unchecked"] = Source(anchors_of(run, made), about | likeness(real, made))
    return found


def _rendered(run: Any, size: int) -> Source:
    from ida_jax.data.rendered import rendered_faces

    images = rendered_faces(
        identities=size, images_per_identity=1, first_identity=_OTHER_PEOPLE,
        image_size=run.model.preprocessing.image_size, seed=run.config.seed,
    ).images  # fmt: skip
    made = run.embed(images, "embed the rendered faces")
    about = likeness(np.asarray(run.anchors.embeddings), made)
    return Source(anchors_of(run, made, "rendered"), about)


def _normal(run: Any, size: int) -> Source:
    real = np.asarray(run.anchors.embeddings, np.float64)
    rng = np.random.default_rng(run.config.seed)
    made = rng.multivariate_normal(real.mean(axis=0), np.cov(real.T), size).astype(np.float32)
    anchors = anchors_of(run, made, "normal")
    return Source(anchors, likeness(np.asarray(run.anchors.embeddings), anchors.embeddings))


def _class_weights(run: Any) -> Source:
    from ida_jax.anchors.sources import class_weights

    c, weights, about = run.config, run.model.class_weights, {}
    if weights is None:
        weights, about = fitted_class_weights(run.train_embeddings, run.train_faces.labels)
    anchors = class_weights(
        weights, size=c.anchors.size, seed=c.seed, k=c.k, tau=c.tau,
        fingerprint=run.model.fingerprint,
    )  # fmt: skip
    return Source(anchors, about)


def fitted_class_weights(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int = 60,
    batch_size: int = 512,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> tuple[np.ndarray, dict[str, Any]]:
    """An ArcFace head (s = 64, m = 0.5) fitted to frozen embeddings, by SGD with momentum.

    Args:
      embeddings: float32 [N, D], unit rows.
      labels: int [N], 0 … C−1.

    Returns:
      Float32 [C, D], unit rows; and how the fit ended: its loss over the last epoch, the share of
      faces whose own class is the nearest, and their mean cosine to it.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from ida_jax.models.margin_head import MarginHead
    from ida_jax.ops.margin import cross_entropy

    labels, n = labels.astype(np.int32), len(labels)
    batch_size = min(batch_size, n)
    head = MarginHead(int(labels.max()) + 1)
    batches = n // batch_size
    momentum = optax.trace(decay=0.9)

    def loss(params: Any, faces: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.mean(cross_entropy(head.apply(params, faces, labels), labels))

    @jax.jit
    def step(params: Any, state: Any, faces: jax.Array, labels: jax.Array, rate: float) -> tuple:
        value, gradient = jax.value_and_grad(loss)(params, faces, labels)
        update, state = momentum.update(gradient, state)
        return jax.tree.map(lambda p, u: p - rate * u, params, update), state, value

    params = head.init(jax.random.key(seed), embeddings[:1], labels[:1])
    state, rng, losses = momentum.init(params), np.random.default_rng(seed), []
    for epoch in range(epochs):
        rate = np.float32(learning_rate * np.cos(0.5 * np.pi * epoch / epochs) ** 2)
        order = rng.permutation(n)[: batches * batch_size].reshape(batches, batch_size)
        for rows in order:
            params, state, value = step(params, state, embeddings[rows], labels[rows], rate)
            losses.append(value)
    weights = np.asarray(params["params"]["weight"])
    weights = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    cosines = embeddings @ weights.T
    return weights, {
        "fitted": f"ArcFace, s = 64, m = 0.5, {epochs} epochs",
        "loss": float(np.mean(losses[-batches:])),
        "accuracy": float(np.mean(np.argmax(cosines, axis=1) == labels)),
        "own_cosine": float(np.mean(cosines[np.arange(n), labels])),
    }


def paper(options: Any) -> dict[str, Any]:
    from paper_runs import evaluated, paper_run, require_paper

    require_paper(options, ["ms1m_arcface"], ["ijbb"])
    fakes = options.workdir / "stylegan_ms1m" / ANCHORS
    config = "configs/stylegan_ms1m.py"
    require({fakes: f"the fake-db, by python -m ida_jax.main --config={config}, which see"})
    run = paper_run(options, "ms1m_arcface")
    weights = run.workdir / "anchors" / "class_weights.safetensors"
    if not weights.is_file():
        _class_weights(run).anchors.save(weights)
    found = evaluated(options, run, "ijbb")
    figures = {"cosine": found["cosine"], "real_db": found["ida_r"]}
    for name, path in (("class_weights", weights), ("fake_db", fakes)):
        figures[name] = evaluated(
            options, run, "ijbb", ending=f"_{name}", anchors=path, methods="cosine,ida_r"
        )["ida_r"]
    return {"ours": figures, "rows": _rows(figures, list(TABLE4["cosine"])), "differs": []}


def _rows(figures: Mapping[str, Any], fars: list[str]) -> list[dict[str, str]]:
    rows = []
    for source, of in figures.items():
        row = {"anchors": TITLES[source]}
        for far in fars:
            row |= columns(f"TAR@{far}", of, "tar@far", far)
            if "over_real_db" in figures["real_db"]:
                row[f"TAR@{far} over real-db"] = over_real_db(of, far)
        if all(far in TABLE4["cosine"] for far in fars):
            row |= {f"in the paper {far}": _published(source, far) for far in fars}
        rows.append(row)
    return rows


def over_real_db(figures: Mapping[str, Any], far: str) -> str:
    """The cell of a TAR's difference to the real-db's; empty for the real-db itself."""
    gains = figures.get("over_real_db", {})
    if far not in gains.get("tar_gain@far", {}):
        return ""
    interval = gains["tar_gain_interval@far"][far]
    return percent(gains["tar_gain@far"][far], interval, signed=True)


def _published(source: str, far: str) -> str:
    return percent(TABLE4.get(source, {}).get(far))


if __name__ == "__main__":
    experiment("table4", __doc__, small=small, paper=paper, published=TABLE4, flags=generator_flag)
