"""A run's config: the sections that configs share, and --config=FILE on the command line.

The sections have every option and the paper's value of it. A config (`configs/*.py`) takes
`run_section` and changes what its run differs in.
"""

import os
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from ida_jax.common.command_line import did_you_mean, underscored, user_path
from ida_jax.common.errors import UserError
from ida_jax.data.load import renamed_section
from ida_jax.rescoring.method_table import methods_with
from ida_jax.runs.config_words import missing_key, no_such_key, peers_key
from ida_jax.runs.workdir import METHOD_FILES

# The entries that are paths, in either kind of config.
_PATHS = (
    "data_dir", "embeddings", "labels", "anchors", "anchors.generator", "anchors.balance",
    "evaluate.groups", "evaluate.ignore_identity_pairs", "model.weights",
)  # fmt: skip
# Beside the package in a checkout, inside it in a wheel.
_CONFIGS = tuple(Path(__file__).parents[up] / "configs" for up in (1, 2))
_BINS_FLAG = "--config.verify_data"
_DATA_FLAG = re.compile(r"--config\.(train_data|eval_data|verify_data)\.(\w+)")


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
    # FAR and TAR of all pairs by group: a list of person and group; also at a threshold a group.
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
    c.batch_norm = "global"  # or per_device, as PyTorch's DistributedDataParallel has it
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
    """The config itself, or for the variant "smoke" `as_smoke`.

    Raises:
      ValueError: another variant, which ida_jax.main reports.
    """
    if variant == "smoke":
        return as_smoke(c)
    if variant:
        raise ValueError(f"variant '{variant}' is unknown: there is 'smoke'")
    return c


def parse_config(arguments: list[str], **others: str) -> tuple[ConfigDict | None, dict[str, str]]:
    """Reads --config=FILE[:variant], --config.key=value and further text flags.

    In place of a file, the name of one of the project's configs will do: --config=quickstart.

    Args:
      arguments: the flags, in either spelling.
      **others: further flags' names and what they are.

    Returns:
      The config, None where --config is not given; and the further flags' values, None likewise.

    Raises:
      UserError: an unknown flag or key, a value of another type, or no such file.
    """
    from absl import flags
    from ml_collections import config_flags

    words, bins = _listed_bins(underscored(arguments))
    rest, sections = _renamed_data(words)
    parsed, argv = flags.FlagValues(), ["", *_expanded(rest, ("config", *others))]
    config_flags.DEFINE_config_file(
        "config", None, "The run's config.", flag_values=parsed, sys_argv=argv
    )
    for name, what in others.items():
        flags.DEFINE_string(name, None, what, flag_values=parsed)
    try:
        rest = parsed(argv)[1:]
        config = parsed.config
        if config is not None:
            config.stages  # noqa: B018  a file that was not found shows at the first look
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_unknown_key(argv) or f"{_one_line(error)}; see --help") from error
    except Exception as error:  # a config is a program, which can fail in any way
        what = f"{type(error).__name__}: {_one_line(error)}"
        raise UserError(f"the config cannot be run: {what}") from error
    for name in others:
        if (given := getattr(parsed, name)) is not None:
            _user_path(f"--{name}", given)
    if config is not None:
        for section, given in sections.items():
            _rename_data(config, section, given)
        if bins is not None:
            config.verify_data = bins
        _expand_paths(config)
        if key := peers_key(config):
            raise UserError(no_such_key(config, key))
    if rest:
        known = ", ".join(f"--{name}=" for name in ("config", *others))
        raise UserError(f"unknown flag '{rest[0]}': expected {known}, --config.key=")
    return config, {name: getattr(parsed, name) for name in others}


def _unknown_key(argv: list[str]) -> str | None:
    """What to say of the first --config.KEY that the file's own config does not have; or None."""
    own: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--config":
            own = [word, following]
        elif word.startswith("--config="):
            own = [word]
    if own and any(word.startswith("--config.") for word in argv):
        try:
            config, _ = parse_config(own)
        except UserError:  # the file itself is what is wrong
            return None
        if config is not None and (key := missing_key(config, argv)):
            return no_such_key(config, key)
    return None


def config_file(arguments: list[str]) -> Path | None:
    """The file of --config=FILE[:variant]; None without the flag."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag == "--config":
            named = _named_config(os.path.expanduser(value if equals else following))
            return Path(named if Path(named).exists() else named.rpartition(":")[0] or named)
    return None


def _named_config(text: str) -> str:
    """FILE[:variant], where the text is NAME[:variant] of one of the project's configs."""
    name, colon, variant = text.partition(":")
    if not name.isidentifier() or Path(text).exists() or Path(name).exists():
        return text
    files = {path.stem: path for folder in _CONFIGS for path in sorted(folder.glob("*.py"))}
    if name in files:
        return f"{files[name]}{colon}{variant}"
    raise UserError(
        f"--config={text}: no such file, and no config of that name: "
        f"{did_you_mean(name, sorted(files))}"
    )


def _expanded(arguments: list[str], paths: Sequence[str]) -> list[str]:
    """The arguments, with ~ expanded in the paths, and a config by its name as a file."""
    expanded = list(arguments)
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if equals and flag.removeprefix("--") in paths:
            value = _user_path(flag, value)
            expanded[index] = f"{flag}={_named_config(value) if flag == '--config' else value}"
        elif argument == "--config" and index + 1 < len(arguments):
            expanded[index + 1] = _named_config(_user_path(argument, arguments[index + 1]))
    return expanded


def _expand_paths(config: ConfigDict) -> None:
    """Does the same with the config's own paths, from its file or from flags."""
    for key in _PATHS:
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section.get(part, {}) if isinstance(section, ConfigDict) else {}
        if isinstance(section, ConfigDict) and isinstance(section.get(name), str):
            section[name] = _user_path(f"--config.{key}", section[name])


def _user_path(flag: str, text: str) -> str:
    try:
        return str(user_path(text))
    except ArgumentTypeError as error:
        raise UserError(f"argument {flag}: {error}") from error


def _listed_bins(arguments: list[str]) -> tuple[list[str], tuple[str, ...] | None]:
    """The arguments without --config.verify_data=X.bin,Y.bin, and its files."""
    others: list[str] = []
    files, words = None, iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == _BINS_FLAG:
            listed = (value if equals else next(words, "")).strip("()[]").split(",")
            files = tuple(text for f in listed if (text := f.strip().strip("'\"")))
        else:
            others.append(word)
    return others, files


def _renamed_data(arguments: list[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The arguments without those of the data sections that a flag renames, and these by section.

    Another data set has other options than the config's file sets, which alone config_flags knows.
    """
    found: dict[str, dict[str, str]] = {}
    others: list[tuple[str, list[str]]] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if not (match := _DATA_FLAG.fullmatch(flag)):
            others.append(("", [word]))
            continue
        spelled = [word] if equals else [word, value := next(words, "")]
        others.append((match[1], spelled))
        found.setdefault(match[1], {})[match[2]] = value
    renamed = {section: given for section, given in found.items() if "name" in given}
    rest = [word for section, spelled in others if section not in renamed for word in spelled]
    return rest, renamed


def _rename_data(config: ConfigDict, section: str, given: Mapping[str, str]) -> None:
    if section not in config:
        raise UserError(f"the config has no '{section}', which --config.{section}.name changes")
    former = config[section]
    if not isinstance(former, ConfigDict):
        former = ConfigDict()  # verification sets
    config[section], left_out = renamed_section(section, former, given)
    if left_out:
        print(
            f"{section} is {given['name']}: {', '.join(left_out)} of {former.name} left out",
            file=sys.stderr,
        )


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    # ml_collections' suggestion comes as the representation of a two-line text.
    if suggestion := re.search(r'Did you mean "([^"]*)" instead of "([^"]*)"', text):
        return f"the config has no '{suggestion[2]}': did you mean '{suggestion[1]}'?"
    # A traceback's last line states the cause.
    return text.splitlines()[-1].strip() if text else type(error).__name__
