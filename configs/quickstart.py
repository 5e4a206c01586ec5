"""The whole road on rendered identities: train, anchors, SSR, evaluate.

Reproduces: the shape of Table 1's ArcFace rows (cosine, IDA-R, IDA-L), on synthetic faces.
Hardware: a laptop, 2 CPU cores, under 3 minutes.
Expected: LFW-style accuracy above 0.90 on identities never seen in training.
Command: python -m ida_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
Variant: configs/quickstart.py:smoke runs the same code on a handful of faces, in seconds.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section

TRAIN_IDENTITIES = 500


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("IDA quickstart: rendered identities")
    c.flip = False
    images = {"name": "rendered", "image_size": 48}
    c.train_data = ConfigDict({**images, "identities": TRAIN_IDENTITIES, "images_per_identity": 14})
    c.eval_data = ConfigDict(
        {
            **images,
            "identities": 200,
            "images_per_identity": 10,
            "first_identity": TRAIN_IDENTITIES,
            "shares": (0.25, 0.25, 0.25, 0.25),
        }
    )
    c.verify_data = ConfigDict(
        {
            **images,
            "identities": 50,
            "images_per_identity": 4,
            "first_identity": TRAIN_IDENTITIES + 200,
        }
    )
    c.model.network = "iresnet_nano"
    c.model.options.update({"dropout_rate": 0.0, "dtype": "float32"})
    c.model.image_size = 48

    c.train.scale, c.train.margin = 32.0, 0.3
    c.train.batch_size = 64
    c.train.learning_rate = 0.05
    c.train.steps, c.train.decay_steps = 350, (240, 320)
    c.train.checkpoint_every, c.train.log_every = 100, 10
    c.train.verify_every = 100

    c.ssr.steps, c.ssr.decay_steps = 3000, (1500, 2000, 2500)
    c.ssr.learning_rate = 0.01

    c.evaluate.fars = (1e-3, 1e-4, 1e-5)
    return choose_variant(c, variant)
