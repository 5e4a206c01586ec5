"""IDA-R and IDA-L behind a given MobileFaceNet, on real faces: LFW, all pairs of the eval half.

Reproduces: section 4's comparison (cosine, IDA-R, IDA-L) at small scale. Identities are split in
two halves: the first image of each anchor identity is an anchor (real-db), all its images train the
SSR module, and the eval half is only evaluated.
Needs: DATA/lfw/lfw_112.tar and split.csv, DATA/weights/mobilefacenet.npz.
Hardware: 2 CPU cores, about 5 minutes.
Expected: TAR@FAR 1e-5 of .935 for cosine and .941 for IDA-R (k = 10, τ = 1).
Command: python -m ida_jax.main --config=configs/lfw_pretrained.py \
    --config.data_dir=DATA --workdir=runs/lfw_pretrained
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.title = "LFW, a pretrained MobileFaceNet"
    c.seed = 0
    c.stages = ("import", "anchors", "ssr", "csn", "evaluate")
    c.data_dir = "data"
    c.k = 10
    c.tau = 1.0
    c.searcher = "auto"
    c.flip = False

    c.train_data = ConfigDict({"name": "lfw", "role": "anchor"})
    c.eval_data = ConfigDict({"name": "lfw", "role": "eval", "images_per_identity": 10})

    c.model = ConfigDict()
    c.model.weights = "weights/mobilefacenet.npz"
    c.model.network = "mobilefacenet"
    c.model.options = ConfigDict({"embedding_dim": 128})
    c.model.image_size = 112
    c.model.mean = (0.485, 0.456, 0.406)
    c.model.std = (0.229, 0.224, 0.225)

    c.anchors = ConfigDict({"source": "real_db", "size": 50_000})

    c.ssr = ConfigDict()
    c.ssr.hidden = 128
    c.ssr.target = "standardised"
    c.ssr.batch_size = 512
    c.ssr.steps = 30_000
    c.ssr.learning_rate = 1e-3
    c.ssr.decay_steps = (15_000, 20_000, 25_000)
    c.ssr.decay_factor = 0.1
    c.ssr.momentum = 0.9
    c.ssr.weight_decay = 5e-4

    c.csn = ConfigDict({"top_n": 100, "degree": 3})

    c.evaluate = ConfigDict()
    c.evaluate.methods = (
        "cosine", "ida_r", "ida_r_fallback", "ida_l", "s_norm", "as_norm", "csn"
    )  # fmt: skip
    c.evaluate.top_n = 300
    c.evaluate.fars = (1e-3, 1e-4, 1e-5, 1e-6)
    c.evaluate.pairs = "drawn"
    c.evaluate.folds = 10
    return c
