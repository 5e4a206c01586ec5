"""PFE, alone and with IDA, behind a given MobileFaceNet, on real faces: LFW's eval half.

Reproduces: section 4.7 and Table 5 (PFE, PFE & IDA-R) at small scale: all pairs of images, and of
templates of at most 5 images. As configs/lfw_pretrained.py, the anchor half's identities train the
SSR and the uncertainty module and give the anchors; the eval half is only evaluated.
Needs: DATA/lfw/lfw_112.tar and split.csv, DATA/weights/mobilefacenet.npz.
Hardware: 2 CPU cores, about 10 minutes.
Expected: TAR@FAR 1e-4 over all pairs of images of .970 for cosine, .972 for IDA-R, .974 for PFE's
likelihood, .977 for PFE & IDA-L (experiments/results/table5_small.json).
Command: python -m ida_jax.main --config=configs/lfw_pfe.py \
    --config.data_dir=DATA --workdir=runs/lfw_pfe
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import run_section


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(
            f"variant '{variant}' is unknown: the weights are given, so there are no variants"
        )
    c = run_section("LFW, a pretrained MobileFaceNet with PFE")
    c.stages = ("import", "anchors", "ssr", "pfe", "evaluate")
    c.flip = False

    c.train_data = ConfigDict({"name": "lfw", "role": "anchor"})
    c.eval_data = ConfigDict({"name": "lfw", "role": "eval", "images_per_identity": 10})

    c.model.weights = "weights/mobilefacenet.npz"
    c.model.network = "mobilefacenet"
    c.model.options = ConfigDict({"embedding_dim": 128})
    c.model.mean = (0.485, 0.456, 0.406)
    c.model.std = (0.229, 0.224, 0.225)

    # As in configs/lfw_pretrained.py.
    c.ssr.input, c.ssr.copies = "scaled", 40
    c.ssr.hidden, c.ssr.learning_rate, c.ssr.weight_decay = 512, 1e-2, 2e-3
    # Shi & Jain's 3,000 steps are 180 epochs of these 4,289 faces, which the module then knows by
    # heart, and its likelihoods of others' faces are worthless. Spoilt images, fewer and smaller
    # steps, a narrower layer and more decay were chosen on people held out of this half
    # (experiments/pfe_choose.py).
    c.pfe.augment, c.pfe.hidden = "low_quality", 64
    c.pfe.steps, c.pfe.decay_steps = 300, (200,)
    c.pfe.learning_rate, c.pfe.weight_decay = 2e-4, 0.5

    c.evaluate.methods = ("cosine", "ida_r", "ida_l")
    c.evaluate.template_size, c.evaluate.sweeps = 5, False
    return c
