"""The whole road on rendered identities: train, anchors, SSR, evaluate.

Reproduces: the shape of Table 1's ArcFace rows (cosine, IDA-R, IDA-L), on made-up faces.
Hardware: a laptop, 2 CPU cores, under 3 minutes.
Expected: LFW-style accuracy above 0.90 on identities never seen in training.
Command: python -m ida_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
Variant: configs/quickstart.py:smoke runs the same code on a handful of faces, in seconds.
"""

from ml_collections import ConfigDict

TRAIN_IDENTITIES = 500


def get_config(variant: str = "") -> ConfigDict:
    c = ConfigDict()
    c.title = "IDA quickstart: rendered identities"
    c.seed = 0
    c.stages = ("train", "anchors", "ssr", "csn", "evaluate")
    c.data_dir = "data"
    c.k = 10
    c.tau = 1.0
    c.searcher = "auto"
    c.flip = False

    c.train_data = ConfigDict(
        {
            "name": "rendered",
            "identities": TRAIN_IDENTITIES,
            "images_per_identity": 14,
            "image_size": 48,
        }
    )
    c.eval_data = ConfigDict(
        {
            "name": "rendered",
            "identities": 200,
            "images_per_identity": 10,
            "image_size": 48,
            "first_identity": TRAIN_IDENTITIES,
            "shares": (0.25, 0.25, 0.25, 0.25),
        }
    )

    c.model = ConfigDict()
    c.model.network = "iresnet_nano"
    c.model.options = ConfigDict({"embedding_dim": 256, "dropout_rate": 0.0})
    c.model.image_size = 48
    c.model.mean = c.model.std = (0.5, 0.5, 0.5)

    c.train = ConfigDict()
    c.train.head = "arcface"
    c.train.scale = 32.0
    c.train.margin = 0.3
    c.train.batch_size = 64
    c.train.steps = 350
    c.train.learning_rate = 0.05
    c.train.decay_steps = (240, 320)
    c.train.decay_factor = 0.1
    c.train.momentum = 0.9
    c.train.weight_decay = 5e-4
    c.train.checkpoint_every = 100
    c.train.log_every = 10

    c.anchors = ConfigDict({"source": "real_db", "size": 50_000})

    c.ssr = ConfigDict()
    c.ssr.hidden = 256
    c.ssr.target = "standardised"
    c.ssr.batch_size = 512
    c.ssr.steps = 3000
    c.ssr.learning_rate = 0.01
    c.ssr.decay_steps = (1500, 2000, 2500)
    c.ssr.decay_factor = 0.1
    c.ssr.momentum = 0.9
    c.ssr.weight_decay = 5e-4

    c.csn = ConfigDict({"top_n": 100, "degree": 3})

    c.evaluate = ConfigDict()
    c.evaluate.methods = (
        "cosine", "ida_r", "ida_r_fallback", "ida_l", "s_norm", "as_norm", "csn"
    )  # fmt: skip
    c.evaluate.top_n = 300
    c.evaluate.fars = (1e-3, 1e-4, 1e-5)
    c.evaluate.pairs = "drawn"
    c.evaluate.folds = 10
    if variant == "smoke":
        for data, identities in ((c.train_data, 24), (c.eval_data, 20)):
            data.identities, data.images_per_identity, data.image_size = identities, 4, 32
        c.eval_data.first_identity = 24
        c.model.image_size = 32
        c.train.batch_size, c.train.steps, c.train.decay_steps = 12, 8, (6,)
        c.train.checkpoint_every, c.train.log_every = 2, 2
        c.ssr.steps = 200
        c.csn.top_n, c.evaluate.top_n = 12, 12
    elif variant:
        raise ValueError(f"variant '{variant}' is unknown: there is 'smoke'")
    return c
