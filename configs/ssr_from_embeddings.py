"""IDA-L for a model that is not ours: the SSR module from a file of its embeddings, no images.

Reproduces: section 3.2's SSR module (Eq. 6) on anybody's embeddings: with the paper's recipe, or
    for at most 50,000 faces with settings chosen on held-out people (`ssr.choose`).
Needs: E, the training faces' embeddings (.npy, .npz, .parquet); A, the anchors, best from
    `ida-jax anchors build --embeddings=E --labels=L --output=A.safetensors`; L, who is on each
    row of E (.npy, or text of one integer or name per line), in the anchors' numbering or by their
    names: a face's own identity is left out of its support set. Where the anchors are of
    other people, `--config.disjoint=True`, and L for the report alone.
Hardware: 2 CPU cores; 5,571 faces and 2,583 anchors of 128-d took 1.2 minutes in all, and 3.6 with
    the settings of configs/lfw_pretrained.py, on a machine with other work. A GPU or TPU may take
    `--config.ssr.targets=on_the_fly`.
Expected: the record experiments/results/ssr_auto.json; with `--config.ssr.choose=given` on LFW's
    anchor half with MobileFaceNet's embeddings, faces of held-out people: R² .427
    and .401, rank correlation .674 and .644 (seeds 0 and 1); with the ssr settings of
    configs/lfw_pretrained.py R² .376 and .473, rank correlation .723 and .794. TARs of so few faces
    (740 and 676) differ by less than their intervals.
Command: python -m ida_jax.main --config=configs/ssr_from_embeddings.py \
    --config.embeddings=E.npy --config.anchors=A.safetensors --config.labels=L --workdir=runs/ssr
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ida_jax.runs.config import ssr_section


def get_config(variant: str = "") -> ConfigDict:
    c = ConfigDict()
    c.title = "IDA-L from a file of embeddings"
    c.seed = 0
    c.stages = ("targets", "ssr", "evaluate")
    c.embeddings = placeholder(str)
    c.anchors = placeholder(str)
    c.labels = placeholder(str)
    c.disjoint = False  # the anchors are of other people, whom no label has to keep apart
    c.held_out = 0.1  # share of the identities that is kept for the report
    c.k = 10
    c.tau = 1.0
    c.searcher = "auto"
    c.ssr = ssr_section()
    c.ssr.choose = "auto"

    c.evaluate = ConfigDict()
    c.evaluate.most_faces = 6_000  # held out at most: all their pairs are compared
    c.evaluate.fars = (1e-3, 1e-4, 1e-5, 1e-6)
    # A list of L's people that are one person: the pairs between them count neither way.
    c.evaluate.ignore_identity_pairs = placeholder(str)
    c.evaluate.resamples = 1000  # of the bootstrap over identities
    c.evaluate.groups = placeholder(str)  # figures by group: a list of person and group
    c.evaluate.group_thresholds = False
    c.evaluate.further = ()  # methods by anchors alone: ("as_norm", "ida_q_label_free")
    if variant == "smoke":
        c.embeddings = "synthetic"  # synthetic embeddings, anchors and labels, in memory
        c.ssr.steps, c.ssr.decay_steps = 200, (100,)
        c.ssr.choose = "given"
        c.evaluate.resamples = 20
    elif variant:
        raise ValueError(f"variant '{variant}' is unknown: there is 'smoke'")
    return c
