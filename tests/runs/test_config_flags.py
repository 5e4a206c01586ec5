"""A config, its file and the flags that change it: each mistake is one line and exit code 2."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from ida_jax import main
from ida_jax.common.errors import UserError, exit_code
from ida_jax.runs import config_flags
from ida_jax.runs.config_check import check_config, check_embedding_config
from ida_jax.runs.config_flags import config_file, parse_config
from ida_jax.runs.run import Run
from ida_jax.runs.stages import STAGES, _check
from ida_jax.runs.workdir import CONFIG, outdated_stages

CONFIGS = Path(__file__).parents[2] / "configs"
SMOKE = f"--config={CONFIGS}/quickstart.py:smoke"
MS1M = f"--config={CONFIGS}/ms1m_arcface.py"


def _main(monkeypatch, capsys, *flags):
    """The exit code, and the one line on stderr."""
    monkeypatch.setattr(sys, "argv", ["main", *flags])
    code = exit_code(lambda: main.main(sys.argv[1:]))
    lines = capsys.readouterr().err.splitlines()
    return code, lines[-1] if lines else ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.evaluate.fars=abc"], "evaluate.fars is ('abc',): expected numbers"),
        (["--config.evaluate.fars=(1e-3,'x')"], "evaluate.fars is (0.001, 'x'): expected numbers"),
        (["--config.train.decay_steps=abc"], "train.decay_steps is ('abc',): expected numbers"),
        (["--config.model.mean=('a','b','c')"], "model.mean is ('a', 'b', 'c'): expected numbers"),
        ([f"--config.seed={2**63}"], f"seed is {2**63}: expected 0 or more, and less than 2^63"),
        (["--config.seed=-1"], "seed is -1: expected 0 or more"),
        (["--config.seed=1e30"], "--config.seed=1e30"),
        (["--config.stages=()"], "the config names no stages"),
        (["--config.evaluate.top_n=1"], "evaluate.top_n is 1: expected 2 or more"),
        (["--config.evaluate.top_n=17"], "evaluate.top_n is 17, but a cohort can have at most 16"),
        (["--config.csn.top_n=15"], "csn.top_n is 15, but a cohort can have at most 14"),
        (["--config.csn.top_n=0"], "csn.top_n is 0: expected 1 or more"),
        (["--config.train.batch_norm=frozen"],
         "train.batch_norm is frozen, which keeps the statistics of imported weights, and stages "
         "has no import: put it before train, or take global or per_device"),
        (["--config.train.batch_norm=eval"], "train.batch_norm is 'eval'"),
        (["--config.data_dir="], "argument --config.data_dir: an empty path"),
        (["--config.data_dir=gs://bucket/x"], "argument --config.data_dir: 'gs://bucket/x' is"),
        (["--config.data_dir=~nobody_here/x"], "names the home folder of an unknown user"),
        (["--config.train_data.name=nothing"], "'nothing' is unknown: choose one of rendered, lfw"),
        (["--config.train_data.name=pairs"], "'pairs' is unknown: choose one of rendered, lfw"),
        (["--config.train_data.name=tfds"], "train_data is tfds, which needs 'dataset'"),
        (["--config.eval_data.name=tfds"], "eval_data is tfds, which needs 'dataset'"),
        (["--config.train_data.name=tfds", "--config.train_data.identities=3"],
         "train_data is tfds, which has no 'identities': expected dataset, split"),
        (["--config.train_data.name=recordio"], "train_data is recordio, which needs 'dataset'"),
        (["--config.train_data.name=recordio", "--config.train_data.dataset=absent"],
         "no records at data/absent/train.rec"),
        (["--config.verify_data=lfw.bin", "--config.train.verify_every=1"],
         "no verification set (verify_data) at data/lfw.bin"),
        (["--config.verify_data=lfw.bin,agedb_30", "--config.train.verify_every=1"],
         "verify_data lists 'agedb_30': expected verification sets"),
        (["--config.verify_data=", "--config.train.verify_every=1"], "verify_data lists 'nothing'"),
        (["--config.verify_data=a/lfw.bin,b/lfw.bin", "--config.train.verify_every=1"],
         "expected files of different names"),
        (["--config.train_data.name=rendered", "--config.train_data.identities=x"],
         "--config.train_data.identities=x: expected an integer"),
        (["--config.no_data.name=lfw"], "no_data"),
        (["--config.anchors.balance=absent.csv"], "no anchors.balance at absent.csv"),
        (["--config.anchors.balance=clusters:1"], "anchors.balance is 'clusters:1': expected"),
        (["--config.anchors.balance=clusters", "--config.anchors.source=class_weights"],
         "anchors.source is class_weights: only real_db"),
        (["--config.evaluate.groups=absent.csv"], "no groups (evaluate.groups) at absent.csv"),
        (["--config.evaluate.group_thresholds=True"], "goes with evaluate.groups"),
    ],
)  # fmt: skip
def test_a_flag_that_cannot_be(tmp_path, monkeypatch, capsys, flags, message):
    code, line = _main(monkeypatch, capsys, SMOKE, f"--workdir={tmp_path}/w", *flags)
    assert code == 2, line
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("lr=0.1", "the config has no 'lr': arcface_torch's lr is here train.learning_rate"),
        ("train.margin_list=(1,0.5,0)", "arcface_torch's margin_list is here train.head and train"),
        ("train.learning_rte=0.1", "no 'train.learning_rte': did you mean train.learning_rate"),
        ("template_size=5", "no 'template_size': did you mean evaluate.template_size?"),
        ("no_such.thing=5", "no 'no_such.thing': its sections are anchors, csn, eval_data, "),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_is_meant(
    tmp_path, monkeypatch, capsys, flag, message
):
    code, line = _main(monkeypatch, capsys, SMOKE, f"--workdir={tmp_path}/w", f"--config.{flag}")
    assert code == 2
    assert message in line
    assert "see --help" not in line


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--config.train.decay_steps=(1,2)", "--config.train.decay_steps=(3,4)"],
         "config.train.decay_steps"),
        (["--config.evaluate.methods=cosine", "--config.evaluate.methods=ida_r"],
         "config.evaluate.methods"),
        (["--config.train.learning_rate=0.1", "--config.train.learning_rate", "0.2"],
         "config.train.learning_rate"),
        (["--config.k=3", "--config.tau=2", "-config.k=3"], "config.k"),
        (["--config.train.remat", "--noconfig.train.remat"], "config.train.remat"),
        (["--config.train.head=arcface", "--config.train.head=cosface"], "config.train.head"),
        (["--config.anchors.generator=a", "--config.anchors.generator=b"],
         "config.anchors.generator"),
        (["--config.train.batch-size=4", "--config.train.batch_size=8"],
         "config.train.batch_size"),
        (["--config.verify_data=a.bin", "--config.verify_data=b.bin"], "config.verify_data"),
        (["--config.train_data.name=lfw", "--config.train_data.role=eval",
          "--config.train_data.role=anchor"], "config.train_data.role"),
        ([SMOKE], "config"),
        (["--workdir=elsewhere"], "workdir"),
    ],
)  # fmt: skip
def test_a_flag_that_is_given_twice(tmp_path, monkeypatch, capsys, flags, name):
    monkeypatch.chdir(tmp_path)
    code, line = _main(monkeypatch, capsys, SMOKE, f"--workdir={tmp_path}/w", *flags)
    assert code == 2
    assert line == f"error: --{name} is given twice: give it once, with the whole value"
    assert not (tmp_path / "w").exists()


def test_flags_of_like_names_and_values_are_not_the_same_flag(tmp_path):
    config, others = parse_config(
        [SMOKE, "--config.train.head", "cosface", "--config.train.head_dtype", "bfloat16",
         "--config.train.margin=0.2", "--config.train.scale=0.2", "--workdir", "config"],
        workdir="",
    )  # fmt: skip
    assert (config.train.head, config.train.head_dtype) == ("cosface", "bfloat16")
    assert config.train.margin == config.train.scale == 0.2
    assert others == {"workdir": "config"}


def test_every_word_of_arcface_torch_is_answered_and_none_hides_ours(monkeypatch, capsys):
    config, _ = parse_config([MS1M])
    ours = set(config_flags._keys(config))
    for word in config_flags.ARCFACE_TORCH:
        assert word not in config
        assert f"arcface_torch's {word} is here" in config_flags.no_such_key(config, word)
        named = re.findall(
            r"\b(?:train|model|verify_data)\.[a-z_.]+\b", config_flags.ARCFACE_TORCH[word]
        )
        assert set(named) <= ours | {"verify_data.dataset"}
    assert config_flags.peers_key(config) is None
    with config.unlocked():
        config.train.lr = 0.1
    assert config_flags.peers_key(config) == "train.lr"


def test_the_help_lists_the_configs_sections(monkeypatch, capsys):
    main.main(["--help"])
    printed, config = capsys.readouterr().out, parse_config([MS1M])[0]
    for name in config:
        assert re.search(rf"^  .*\b{name}\b", printed, re.MULTILINE), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "no_such_module"),
        ("\0", "null bytes"),
        ("def get_config():\n    return 5", "'int' object has no attribute 'stages'"),
        ("from ml_collections import ConfigDict\n"
         "def get_config():\n    return ConfigDict({'stages': ('train',)})",
         "the config has no 'seed'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_config(tmp_path, monkeypatch, capsys, text, message):
    (tmp_path / "c.py").write_text(text)
    flags = [f"--config={tmp_path}/c.py", f"--workdir={tmp_path}/w"]
    code, line = _main(monkeypatch, capsys, *flags)
    assert code == 2
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("flags", [["--config=", "--workdir=w"], [SMOKE, "--workdir="]])
def test_an_empty_path(monkeypatch, capsys, flags):
    code, line = _main(monkeypatch, capsys, *flags)
    assert code == 2
    assert "an empty path" in line


def test_home(tmp_path, monkeypatch):
    """A shell leaves the ~ of --workdir=~/w alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.py").write_bytes((CONFIGS / "lfw_pretrained.py").read_bytes())
    flags = ["--config=~/c.py", "--config.data_dir=~/data", "--config.model.weights=~/w.pth"]
    config, others = parse_config([*flags, "--workdir=~/w"], workdir="")
    assert config.data_dir == str(tmp_path / "data")
    assert config.model.weights == str(tmp_path / "w.pth")
    assert others == {"workdir": str(tmp_path / "w")}
    assert config_file(flags) == tmp_path / "c.py"


def test_another_data_set_has_other_options(capsys):
    config, _ = parse_config(
        [MS1M, "--config.train_data.name=rendered", "--config.train_data.identities=7",
         "--config.train_data.images-per-identity", "3", "--config.train_data.shares=(1,0,2)",
         "--config.eval_data.name=lfw", "--config.eval_data.role=eval", "--config.k=4"]
    )  # fmt: skip
    assert config.train_data.to_dict() == {
        "name": "rendered", "identities": 7, "images_per_identity": 3, "shares": (1.0, 0.0, 2.0)
    }  # fmt: skip
    assert config.eval_data.to_dict() == {"name": "lfw", "role": "eval"}
    assert config.k == 4
    said = capsys.readouterr().err
    assert said == "train_data is rendered: dataset, split of tfds left out\n"


def test_options_that_two_data_sets_share_are_kept(capsys):
    config, _ = parse_config([SMOKE, "--config.train_data.name=lfw"])
    assert config.train_data.to_dict() == {"name": "lfw", "images_per_identity": 2}
    assert "identities" in capsys.readouterr().err


def test_the_same_name_again_changes_nothing(capsys):
    config, _ = parse_config([SMOKE, "--config.train_data.name=rendered"])
    assert config.train_data == parse_config([SMOKE])[0].train_data
    assert capsys.readouterr().err == ""


def test_an_option_of_later_versions_that_is_not_used_changes_nothing(tmp_path):
    config, _ = parse_config([SMOKE])
    former = json.loads(config.to_json_best_effort())
    del former["data_dir"], former["anchors"]["balance"], former["evaluate"]["group_thresholds"]
    (tmp_path / CONFIG).write_text(json.dumps(former))
    for stage in config.stages:
        (tmp_path / STAGES[stage].result).parent.mkdir(exist_ok=True)
        (tmp_path / STAGES[stage].result).touch()
    assert outdated_stages(tmp_path, config, STAGES) == {}
    config.anchors.balance = "clusters:2"
    changed = outdated_stages(tmp_path, config, STAGES)
    assert changed["anchors"] == "anchors.balance was absent, is now clusters:2"


def test_verification_sets_by_a_flag_and_a_data_set_in_their_place():
    config, _ = parse_config([MS1M, "--config.verify_data=lfw.bin, sets/agedb_30.bin"])
    assert config.verify_data == ("lfw.bin", "sets/agedb_30.bin")
    assert parse_config([MS1M, "--config.verify-data", "('lfw.bin',)"])[0].verify_data == (
        "lfw.bin",
    )
    file = CONFIGS / "ms1m_arcface.py"
    in_a_file = runpy.run_path(str(file))["get_config"]()
    in_a_file.verify_data = ("lfw.bin", "sets/agedb_30.bin")
    assert in_a_file.to_dict() == config.to_dict()
    again = ["--config.verify_data.name=lfw", "--config.verify_data.role=eval"]
    assert parse_config([MS1M, *again])[0].verify_data.to_dict() == {"name": "lfw", "role": "eval"}


def test_training_alone_asks_for_nothing_of_later_stages(tmp_path):
    """No anchors enough for k, no cohort for top_n, no faces to evaluate."""
    config, _ = parse_config(
        [SMOKE, "--config.stages=('train',)", "--config.k=99", "--config.evaluate.top_n=99",
         "--config.csn.top_n=99", "--config.eval_data.name=lfw", "--config.evaluate.pairs=lfw",
         "--config.evaluate.methods=('nothing',)", "--config.evaluate.groups=absent.csv"]
    )  # fmt: skip
    _check(Run(config, tmp_path), ["train"])
    with config.unlocked():
        del config.eval_data
    _check(Run(config, tmp_path), ["train"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("train={}", "the config has no 'train.accumulate': begin it with"),
        ("model={}", "the config has no 'model.class_weights': begin it with"),
        ("eval_data={}", "eval_data has no 'name': set --config.eval_data.name="),
        ("stages=()", "stages begin with '': expected train or import first"),
        ("evaluate.methods=()", "evaluate.methods names no method"),
        ("train.batch_size=99999999999", "is 99999999999: expected less than 2,147,483,648"),
        ("train_data.identities=99999999999999999999", "train_data.identities is .*less than"),
        (
            "train.decay_steps=1e400",
            r"train.decay_steps is \(inf,\): expected numbers separated by commas, all finite",
        ),
        ("train.decay_epochs=1e400", r"train.decay_epochs is \(inf,\): expected numbers of epochs"),
    ],
)
def test_what_no_config_can_be(flag, message):
    config, _ = parse_config([SMOKE, f"--config.{flag}"])
    with pytest.raises(UserError, match=message):
        check_config(config, ["train", "anchors", "ssr", "evaluate"])


def test_a_run_from_embeddings_without_its_figures():
    config, _ = parse_config(["--config=ssr_from_embeddings:smoke", "--config.evaluate={}"])
    with pytest.raises(UserError, match=r"the config has no 'evaluate\.fars'"):
        check_embedding_config(config)
