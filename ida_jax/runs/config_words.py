"""What to say of a key that a config does not have: the one that is meant, arcface_torch's too."""

from collections.abc import Iterator
from difflib import get_close_matches

from ml_collections import ConfigDict

# Keys of InsightFace's arcface_torch, and what they are here.
ARCFACE_TORCH = {
    "batch_size": "train.batch_size, of all devices together",
    "embedding_size": "model.options.embedding_dim",
    "fp16": "model.options.dtype=float16, with its loss scaling, or bfloat16, which needs none",
    "gradient_acc": "train.accumulate, which averages the parts of one batch",
    "lr": "train.learning_rate",
    "margin_list": "train.head and train.margin: (1, m, 0) is arcface with m, and wherever the "
    "third is above 0, cosface with it",
    "network": "model.network: r50 is iresnet50",
    "num_classes": "not needed: the training set's identities are counted",
    "interclass_filtering_threshold": "train.interclass_filtering_threshold",
    "num_epoch": "train.epochs",
    "num_image": "not needed: the training set's images are counted",
    "output": "--workdir=DIR",
    "optimizer": "train.optimizer: sgd or adamw",
    "rec": "train_data.name=recordio and train_data.dataset=FOLDER, read where it lies",
    "resume": "not needed: the same command with the same --workdir resumes",
    "sample_rate": "train.sample_rate",
    "val_targets": "verify_data=lfw.bin,cfp_fp.bin, the release's files in data_dir",
    "warmup_epoch": "train.warmup_epochs",
    "weight_decay": "train.weight_decay",
}


def no_such_key(config: ConfigDict, key: str) -> str:
    """One line on a dotted key that the config does not have: the nearest ones, or ours."""
    name = key.rpartition(".")[2]
    if name in ARCFACE_TORCH:
        return f"the config has no '{key}': arcface_torch's {name} is here {ARCFACE_TORCH[name]}"
    keys = list(_keys(config))
    same = [each for each in keys if each.rpartition(".")[2] == name]
    near = same or get_close_matches(key, keys, 3, 0.75)
    leaves = {each.rpartition(".")[2]: each for each in reversed(keys)}
    near = near or [leaves[leaf] for leaf in get_close_matches(name, leaves, 3, 0.75)]
    if near:
        return f"the config has no '{key}': did you mean {' or '.join(near[:3])}?"
    sections = ", ".join(sorted(k for k in config if isinstance(config[k], ConfigDict)))
    return f"the config has no '{key}': its sections are {sections}"


def missing_key(config: ConfigDict, arguments: list[str]) -> str | None:
    """The first key of --config.KEY among the arguments that the config does not have."""
    for word in arguments:
        flag = word.partition("=")[0]
        if flag.startswith("--config.") and not _has(config, key := flag.removeprefix("--config.")):
            return key
    return None


def peers_key(config: ConfigDict) -> str | None:
    """A key of arcface_torch's that the config's file has set where no section has it; or None."""
    for section in ("", "train", "model"):
        inside = config.get(section) if section else config
        for name in inside if isinstance(inside, ConfigDict) else ():
            key = f"{section}.{name}" if section else name
            if name in ARCFACE_TORCH and key not in _OURS:
                return key
    return None


# Those of the words that are ours too.
_OURS = (
    "train.batch_size", "train.sample_rate", "train.optimizer", "train.weight_decay",
    "train.interclass_filtering_threshold", "model.network",
)  # fmt: skip


def _has(config: ConfigDict, key: str) -> bool:
    for part in key.split("."):
        name = part.partition("[")[0]
        if not isinstance(config, ConfigDict):
            return True  # inside a value, of which config_flags knows
        if name not in config:
            return False
        config = config.get(name)
    return True


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name in config:
        value = config.get(name)
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{name}.")
        yield f"{prefix}{name}"
