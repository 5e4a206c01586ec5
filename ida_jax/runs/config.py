"""A run's config: the sections that configs share.

The sections have every option and the paper's value of it. A config (`configs/*.py`) takes
`run_section` and changes what its run differs in.
"""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from ida_jax.rescoring.method_table import methods_with
from ida_jax.runs.workdir import METHOD_FILES


def run_section(title: str) -> ConfigDict:
    """A whole run with the paper's settings (section 4.1), for MS-Celeb-1M.

    The config sets `train_data`, `eval_data`, and the network.
    """
    c = ConfigDict()
    c.title = title
    c.seed = 0
    c.stages = ("train", "anchors", "ssr", "csn", "evaluate")
    c.data_dir = "data"
    c.k = 10
    c.tau = 1.0
    c.searcher = "auto"
    c.flip = True  # embeddings of an image and its mirror image, summed

    c.train_data = ConfigDict({"name": "tfds", "dataset": "ms1m", "split": "train"})
    c.eval_data = ConfigDict({"name": "lfw"})
    # Held-out pairs, looked at during the training: InsightFace uses LFW's too. Also verification
    # sets of data_dir, ("lfw.bin", "cfp_fp.bin", "agedb_30.bin"), or of `ida-jax prepare bin`,
    # {"name": "pairs", "dataset": "agedb_30"}.
    c.verify_data = FieldReference(ConfigDict({"name": "lfw"}), field_type=object)

    c.model = ConfigDict()
    c.model.network = "iresnet50"
    # Of the stage import: a file in data_dir, whose weights are the model; or, where train follows,
    # what its backbone begins with.
    c.model.weights = placeholder(str)
    # Of the stage import without train: the class weights of arcface_torch's training, for
    # anchors.source=class_weights; a file in data_dir, files by commas, or a folder of shards.
    c.model.class_weights = placeholder(str)
    # float16 is trained with loss scaling, as arcface_torch's fp16; bfloat16 needs none.
    c.model.options = ConfigDict({"embedding_dim": 256, "dropout_rate": 0.4, "dtype": "bfloat16"})
    c.model.image_size = 112
    c.model.mean = c.model.std = (0.5, 0.5, 0.5)

    c.train = train_section()
    c.anchors = ConfigDict({"source": "real_db", "size": 50_000})  # or class_weights, fake_db
    # real_db: as many anchors of each group of people, by a list of person and group, or clusters:N
    c.anchors.balance = placeholder(str)
    # fake_db: a generator's file, in place of the stage gan's; its truncation ψ; whether its faces'
    # embeddings are brought to the mean and covariance of real ones, where they lie apart.
    c.anchors.generator = placeholder(str)
    c.anchors.truncation = 1.0
    c.anchors.align = False
    # Degraded copies of some images, as further anchors and as further faces of the SSR module, for
    # probes of varied quality: "varied", or see ida_jax.data.degrade.degradation; "": none.
    c.anchors.degrade = ""
    c.anchors.degrade_share, c.anchors.degrade_copies = 0.5, 1
    c.ssr = ssr_section()
    c.ssr.degrade = ""
    c.ssr.degrade_share, c.ssr.degrade_copies = 0.5, 1
    c.pfe = pfe_section()
    c.gan = gan_section()
    c.csn = ConfigDict({"top_n": placeholder(int), "degree": 3})  # 100, if the anchors allow

    c.evaluate = ConfigDict()
    # Names in `ida_jax.rescoring.method_table`; these are cosine, ida_r, ida_l and the norms.
    c.evaluate.methods = methods_with(METHOD_FILES, usual=True)
    c.evaluate.top_n = placeholder(int)  # of as_norm: 300, or as many as the anchors allow
    c.evaluate.fars = (1e-3, 1e-4, 1e-5, 1e-6)
    # A list of people that are one person, as evaluate's: the pairs between them count neither way.
    c.evaluate.ignore_identity_pairs = placeholder(str)
    c.evaluate.pairs = "drawn"  # or lfw, the list beside LFW's crops
    c.evaluate.folds = 10
    c.evaluate.rule = "exact"  # or insightface: also the list's figures by arcface_torch's rule
    # Also verification of templates of this many images each, by mean pooling and, where the stage
    # pfe is run, by PFE's fusion; 0: none.
    c.evaluate.template_size = 0
    # FAR and TAR of all pairs by group, a list of person and group; also at own thresholds.
    c.evaluate.groups = placeholder(str)
    c.evaluate.group_thresholds = False
    c.evaluate.resamples = 1000  # of the bootstrap over identities
    c.evaluate.sweeps = True  # TAR against k, τ and the anchors' number (Fig. 6 and 7)
    return c


def train_section() -> ConfigDict:
    """Training of the backbone: the paper's ArcFace on MS-Celeb-1M, nothing else switched on."""
    c = ConfigDict()
    # The head.
    c.head = "arcface"  # arcface | cosface | l2_softmax | sphereface | combined | adaface
    c.scale = 64.0
    c.margin = placeholder(float)  # the head's own: arcface 0.5, cosface 0.35, adaface 0.4, …
    # (m₁, m₂, m₃), of combined in place of margin. All three count; arcface_torch's margin_list
    # with m₃ > 0 drops m₁ and m₂, and is cosface with the margin m₃.
    c.combined_margins = (1.0, 0.3, 0.2)
    # ArcFace, or combined with (1, m, 0), with InsightFace's gradient instead of the exact one.
    c.straight_through = False
    # Cosines above it to other people than the label's count as 0, without gradient: for noisy
    # labels (arcface_torch: 0.4, together with sample_rate 0.1 to 0.3); 0: none.
    c.interclass_filtering_threshold = 0.0
    c.sub_centres = 1  # weight vectors a class; 3 for noisy labels (Sub-center ArcFace)
    c.class_shards = 0  # devices that share the classes; 0: all, 1: each has all classes
    c.class_block = 0  # classes at a time in the softmax; 0: all, which holds [B, C] logits
    # Share of the classes that a step looks at (Partial FC: 0.1); on each device at least those of
    # the batch that it has.
    c.sample_rate = 1.0
    # The others: dense, momentum and weight decay move them as with a gradient of 0 (Partial FC's
    # second version, arcface_torch's); or frozen, they stay as they are until they are sampled.
    c.sample_rule = "dense"
    c.head_dtype = "float32"  # the head's products; or bfloat16_x3, near it and faster, or bfloat16
    # The optimiser.
    c.optimizer = "sgd"  # or adamw, PyTorch's: β = (0.9, 0.999), and no momentum
    c.batch_size = 512
    # Parts of a batch, one after the other: less memory. Their gradients are averaged, and steps
    # are whole batches; arcface_torch's gradient_acc sums them, and counts every part as a step.
    c.accumulate = 1
    c.steps = 200_000
    # In place of steps: passes over the training set, ⌊its images / batch_size⌋ steps each as in
    # arcface_torch; or images in all. In place of warmup_steps and decay_steps, likewise, epochs.
    c.epochs, c.images = placeholder(float), placeholder(int)
    c.warmup_epochs, c.decay_epochs = placeholder(float), placeholder(tuple)
    c.schedule = "steps"  # or linear, InsightFace's; or polynomial, the line to the power `power`
    c.power = 2.0
    c.learning_rate = 0.1
    # Step s of them has (s + 1) / warmup_steps of the rate, arcface_torch's s / warmup_steps.
    c.warmup_steps = 0
    c.decay_steps = (100_000, 140_000, 160_000)
    c.decay_factor = 0.1
    c.momentum = 0.9
    # Of all parameters, as in arcface_torch: sgd's is part of the gradient, λ w, and enters the
    # momentum; adamw's is apart from it, w ← w − η λ w (arcface_torch: 0.1).
    c.weight_decay = 5e-4
    c.clip_norm = 0.0  # of the backbone's gradient; 0: none, InsightFace: 5
    c.ema_decay = 0.0  # moving average of the backbone, which then is the model; 0: none
    # The network.
    # Of the whole batch (global); of each device's part (per_device), as PyTorch's
    # DistributedDataParallel has it; or, for fine-tuning, by the imported running statistics, which
    # stay as they are (frozen), as after PyTorch's eval() of the BatchNorm modules.
    c.batch_norm = "global"
    c.remat = False  # computes activations again in the backward pass: less memory
    # Input.
    # A name, or a ConfigDict of probabilities (`del c.augment` first): see ida_jax.data.augment.
    c.augment = "flip"
    c.workers = 0  # processes that decode; 0: threads of this one
    # Records.
    c.checkpoint_every = 5_000
    c.log_every = 100
    c.verify_every = 0  # steps between verifications on verify_data; 0: none
    # Their accuracy: exact thresholds, or insightface, arcface_torch's, with its VAL@FAR and XNorm.
    c.verify_rule = "exact"
    c.keep = "last"  # or best, by verification: the weights that become the model
    return c


def ssr_section() -> ConfigDict:
    """Training of the SSR module (IDA-L)."""
    c = ConfigDict()
    # given: the settings below. held_out: those chosen on held-out people, log F calibrated on
    # others, and falls back to the cosine where these see nothing in it (`training.ssr_choice`);
    # target is kept, and steps are the most. auto: held_out for 50 people or more with at most
    # 50,000 faces.
    c.choose = "given"
    # searched: once for each face, before the training; on_the_fly: by each step for its batch, on
    # a GPU or TPU.
    c.targets = "searched"
    c.hidden = 256
    c.target = "standardised"  # or log, or paper: F itself
    # Or scaled: times √D, entries of unit size, which learns faster; or centred: those of the
    # faces' differences from their mean.
    c.input = "unit"
    # Made-up faces for each one, by mixing and noise, with targets searched as for any face: for
    # small training sets, whose faces the module would learn by heart.
    c.copies = 0
    c.mix = 0.5
    c.noise = 0.6
    c.batch_size = 512
    c.steps = 30_000
    c.learning_rate = 1e-3
    # The paper's "divided by 0.1" is read as multiplied by 0.1.
    c.decay_steps = (15_000, 20_000, 25_000)
    c.decay_factor = 0.1
    c.momentum = 0.9
    c.weight_decay = 5e-4
    return c


def pfe_section() -> ConfigDict:
    """Training of the uncertainty module (PFE): Shi & Jain's recipe for MS-Celeb-1M.

    For CASIA-WebFace they take 3,000 steps, with the decay at 2,000.
    """
    c = ConfigDict()
    c.hidden = 512
    c.identities, c.images = 64, 4  # of each, a batch; an identity with fewer images repeats them
    c.steps = 12_000
    c.learning_rate = 1e-3
    c.decay_steps = (8_000,)
    c.decay_factor = 0.1
    c.momentum = 0.9
    c.weight_decay = 5e-4  # of the two layers' weights
    c.augment = "flip"
    c.workers = 0
    c.checkpoint_every = 1_000
    c.log_every = 100
    return c


def gan_section() -> ConfigDict:
    """Training of the generator of the fake-db: StyleGAN2 with adaptive augmentation, at 128 px.

    The sizes are those of StyleGAN2-ADA's own configuration for this resolution. 25 M images are
    its full training; most of the quality is there after 5 M.
    """
    c = ConfigDict()
    # Power of two from 8 to 128. Crops of 112 px are reflected outwards to 128, and faces of 128 px
    # cut to 112 again; a smaller resolution shrinks the crops, and enlarges the faces.
    c.resolution = 128
    c.latent_dim = c.style_dim = 512
    c.mapping_layers = 2
    c.channel_base, c.channel_max = 16_384, 512  # a block of size r: min(base / r, max) channels
    c.dtype = "bfloat16"
    c.batch_size = 64
    c.steps = 390_000
    c.learning_rate = 0.0025  # Adam's, β = (0, 0.99)
    c.r1_weight, c.r1_every = 0.05, 16  # γ; about 0.0002 · R² / batch_size
    c.path_weight, c.path_every = 2.0, 4  # 0: none
    c.style_mixing = 0.9  # the share of faces made of two latents
    c.ema_images = 20_000  # the moving average's half-life
    # Adaptive augmentation holds the mean sign of real faces' logits here; 0: no augmentation.
    c.augment_target = 0.6
    c.augment_images = 500_000  # in which its probability can go from 0 to 1
    c.augment = "flip"  # of the training faces, beside it
    c.workers = 0
    c.evaluate_every = 16_000  # Fréchet distance, precision and recall, samples, a generator's file
    c.evaluate_faces = 10_000  # the most generated, and real, faces for them
    c.keep = "best"  # by the Fréchet distance, or last
    c.checkpoint_every = 4_000
    c.log_every = 100
    return c


def as_smoke(c: ConfigDict) -> ConfigDict:
    """The same run, through the same code, on a few rendered identities: it ends in a minute.

    Network, head, optimiser and schedule stay; images, batches and steps become small.
    """
    images = {"name": "rendered", "image_size": 32}
    c.train_data = ConfigDict({**images, "identities": 16, "images_per_identity": 2})
    c.evaluate.folds, c.evaluate.resamples, c.evaluate.sweeps = 5, 20, False
    images.update(identities=10, images_per_identity=2)  # the fewest for five folds
    c.eval_data = ConfigDict({**images, "first_identity": 16})
    c.verify_data = ConfigDict({**images, "first_identity": 26})
    c.model.image_size = 32
    c.model.options.dtype = "float32"  # CPUs compute bfloat16 many times slower
    c.train.batch_size = 8
    c.train.steps, c.train.decay_steps, c.train.warmup_steps = 2, (1,), 0
    c.train.epochs = c.train.images = c.train.warmup_epochs = c.train.decay_epochs = None
    c.train.checkpoint_every = c.train.log_every = 1
    c.train.verify_every = min(2, c.train.verify_every)
    c.ssr.steps, c.ssr.decay_steps = 200, (100,)
    c.pfe.identities, c.pfe.images, c.pfe.steps, c.pfe.decay_steps = 4, 2, 2, (1,)
    c.gan.update(resolution=8, latent_dim=16, style_dim=16, channel_base=256, channel_max=32)
    c.gan.update(dtype="float32", batch_size=8, steps=4, path_every=2, r1_every=2, log_every=1)
    c.gan.update(evaluate_every=2, evaluate_faces=32, checkpoint_every=2)
    c.csn.top_n = c.evaluate.top_n = 12
    c.evaluate.pairs = "drawn"
    return c


def choose_variant(c: ConfigDict, variant: str) -> ConfigDict:
    """The config itself, or for the variant "smoke" `as_smoke`."""
    if variant == "smoke":
        return as_smoke(c)
    if variant:
        raise ValueError(f"variant '{variant}' is unknown: there is 'smoke'")
    return c
