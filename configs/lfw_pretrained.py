"""IDA-R and IDA-L behind a given MobileFaceNet, on real faces: LFW, all pairs of the eval half.

Reproduces: section 4's comparison (cosine, IDA-R, IDA-L) at small scale. Identities are split in
two halves: the first image of each anchor identity is an anchor (real-db), all its images train the
SSR module, and the eval half is only evaluated.
Needs: DATA/lfw/lfw_112.tar and split.csv, DATA/weights/mobilefacenet.npz.
Hardware: 2 CPU cores, about 5 minutes.
Expected: TAR@FAR 1e-5 of .935 for cosine, .941 for IDA-R and .938 for IDA-L (k = 10, τ = 1).
Command: python -m ida_jax.main --config=configs/lfw_pretrained.py \
    --config.data_dir=DATA --workdir=runs/lfw_pretrained
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import run_section


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(
            f"variant '{variant}' is unknown: the weights are given, so there are no variants"
        )
    c = run_section("LFW, a pretrained MobileFaceNet")
    c.stages = ("import", "anchors", "ssr", "csn", "evaluate")
    c.flip = False

    c.train_data = ConfigDict({"name": "lfw", "role": "anchor"})
    c.eval_data = ConfigDict({"name": "lfw", "role": "eval", "images_per_identity": 10})

    c.model.weights = "weights/mobilefacenet.npz"
    c.model.network = "mobilefacenet"
    c.model.options = ConfigDict({"embedding_dim": 128})
    c.model.mean = (0.485, 0.456, 0.406)
    c.model.std = (0.229, 0.224, 0.225)

    # Of 6,311 faces the module would else know by heart what it should regress.
    c.ssr.input, c.ssr.copies = "scaled", 40
    c.ssr.hidden, c.ssr.learning_rate, c.ssr.weight_decay = 512, 1e-2, 2e-3
    return c
