"""Every command's flags: one spelling in its help, and hyphens taken for underscores."""

import contextlib
import re
import sys
from pathlib import Path

import pytest

from ida_jax import (
    __main__,
    check_labels,
    embed,
    enrol,
    evaluate,
    export,
    fit,
    identify,
    main,
    plan,
    prepare,
    rescore,
    trial,
)
from ida_jax.anchors import __main__ as anchors
from ida_jax.common.command_line import Parser, underscored
from ida_jax.common.errors import UserError

COMMANDS = {
    "trial": (trial, []),
    "rescore": (rescore, []),
    "enrol": (enrol, []),
    "identify": (identify, []),
    "evaluate": (evaluate, []),
    "evaluate --protocol": (evaluate, ["--protocol=pairs"]),
    "check_labels": (check_labels, []),
    "embed": (embed, []),
    "prepare": (prepare, []),
    "prepare recordio": (prepare, ["recordio"]),
    "prepare folder": (prepare, ["folder"]),
    "prepare bin": (prepare, ["bin"]),
    "prepare lfw": (prepare, ["lfw"]),
    "export": (export, []),
    "plan": (plan, []),
    "fit": (fit, []),
    "fit csn": (fit, ["csn"]),
    "fit dao": (fit, ["dao"]),
    "fit quality": (fit, ["quality"]),
    "anchors": (anchors, []),
    "anchors build": (anchors, ["build"]),
    "anchors fake": (anchors, ["fake"]),
    "anchors info": (anchors, ["info"]),
    "anchors check": (anchors, ["check"]),
    "train": (main, []),
}

# Their help lists commands.
OVERVIEWS = ("prepare", "fit", "anchors")


def test_no_command_is_left_out():
    assert {command.split()[0] for command in COMMANDS} == set(__main__.COMMANDS)


def _run(module, arguments, monkeypatch):
    if module is main:
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        main.main(sys.argv[1:])
    else:
        module.main(arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_one_spelling(command, monkeypatch, capsys):
    module, words = COMMANDS[command]
    with contextlib.suppress(SystemExit):
        _run(module, [*words, "--help"], monkeypatch)
    text = capsys.readouterr().out
    assert len(text) > 100
    assert not re.findall(r"--\w+-\w+", text)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in OVERVIEWS])
def test_the_help_has_examples_and_groups_of_flags(command, monkeypatch, capsys):
    module, words = COMMANDS[command]
    with contextlib.suppress(SystemExit):
        _run(module, [*words, "--help"], monkeypatch)
    text, examples = capsys.readouterr().out.split("examples:\n")
    examples, *groups = re.split(r"\n\n(?=\S)", examples)
    flags = [re.findall(r"^  (--\w+)", group, re.MULTILINE) for group in groups]
    # -h stands alone where there are so many that they need titles.
    assert max(map(len, flags), default=0) <= 12
    shown = set(re.findall(r"(?<= )--\w+(?=[=\s]|$)", examples))
    assert shown
    known = {flag for group in flags for flag in group} or set(re.findall(r"--\w+", text))
    others = {"--config", "--workdir"} if command in ("train", "plan") else set()
    assert shown <= known | others
    assert "python -m" in examples or f"ida-jax {command.split(' --')[0]}" in examples


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (
            "rescore",
            "--embeddings=E --pairs=P --output=S --dao_fit=F --top_n=5 --method=no",
            "'no'",
        ),
        (
            "evaluate --protocol",
            "--files=F --embeddings=E --output=DIR --skip_bad --top_n 5 --labels=L --resamples=1",
            "--resamples=1",
        ),
        ("enrol", "--gallery=G --embeddings=E --dao_fit=F --top_n=5 --delete=N", "one after the"),
        ("identify", "--gallery=G --probes=E --output=O.csv --dao_fit=F --top=0", "--top=0"),
        ("embed", "--model=M --images=I --output=E.npy --skip_bad --batch_size=0", "size=0: exp"),
        ("prepare recordio", "--from=F --name=N --data_dir=D --skip_corrupt --size=0", "--size is"),
        ("prepare folder", "--from=F --name=N --data_dir D --skip_corrupt --size=0", "--size is"),
        ("prepare bin", "--from=B --name=N --data_dir=D --size=0", "--size is 0"),
        ("prepare lfw", "--from=NONE --pairs=NONE --data_dir=D", "NONE"),
        ("plan", "--topology=none:1 --config=CONFIG --config.train.batch_size=0", "none:1"),
        (
            "fit csn",
            "--embeddings=no.npy --labels=L --anchors=A --output=F --keep_own --top_n=5",
            "no.npy",
        ),
        (
            "fit dao",
            "--embeddings=no.npy --labels=L --anchors=A --output=F --most_support=5",
            "no.npy",
        ),
        (
            "anchors build",
            "--output=A.safetensors --model=M --class_weights --per_identity=0",
            "--per_identity must be",
        ),
        (
            "anchors fake",
            "--output=A.safetensors --model=M --images=F --training_labels=L --most_drawn=5 "
            "--duplicate_cosine=.5 --privacy_cosine=.5 --skip_bad --count=0",
            "--count is 0",
        ),
        (
            "anchors build",
            "--output=A.safetensors --embeddings=no.npy --degrade=mild --degrade_copies=2",
            "--degrade goes with --images",
        ),
        ("evaluate", "--scores=S --labels=L --group_thresholds", "goes with --groups"),
        ("trial", "--output=W --model_name=M", "expected --embeddings=E"),
        (
            "fit quality",
            "--embeddings=no.npy --labels=L --anchors=A --output=F --keep_own",
            "no.npy",
        ),
        ("train", "--workdir=W --config=CONFIG --config.train.batch_size=-3", "batch_size is -3"),
    ],
)
def test_either_spelling_is_taken(command, flags, message, tmp_path, monkeypatch):
    module, words = COMMANDS[command]
    monkeypatch.chdir(tmp_path)
    smoke = f"{main.__file__.rsplit('/', 2)[0]}/configs/quickstart.py:smoke"
    given = [word.replace("CONFIG", smoke) for word in flags.split()]
    other = [re.sub(r"^--[^=]*", lambda name: name[0].replace("_", "-"), word) for word in given]
    assert other != given
    messages = []
    for spelling in (given, other):
        with pytest.raises(UserError, match=re.escape(message)) as raised:
            _run(module, [*words, *spelling], monkeypatch)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_only_the_names_of_flags_are_respelled():
    given = ["lfw-a", "--top-n=a-b=c-d", "--config.a-b.c=x-y", "-k", "--", "--as-it-is"]
    assert underscored(given) == [
        "lfw-a", "--top_n=a-b=c-d", "--config.a_b.c=x-y", "-k", "--", "--as-it-is"
    ]  # fmt: skip
    parser = Parser("x", description=None)
    parser.add_argument("--top_n", type=int)
    assert parser.parse_args(["--top-n", "-5"]).top_n == -5
    with pytest.raises(UserError, match="unknown flag '--top"):
        parser.parse_args(["--top", "5"])


@pytest.mark.parametrize(
    "flags",
    [
        "rescore --embeddings= --pairs=P --output=S",
        "evaluate --scores= --labels=L",
        "evaluate --protocol=lfw --files= --embeddings=E --output=O",
        "evaluate --protocol=pairs --files=F --labels= --embeddings=E --output=O",
        "embed --model= --images=I --output=E",
        "prepare folder --from=F --name=t --data_dir=",
        "export --model=M --output=",
        "plan --topology=v5e:2x2 --json=",
        "fit csn --embeddings= --labels=L --anchors=A --output=F",
        "fit dao --embeddings=E --labels=L --anchors=A --output=",
        "anchors build --output=A.safetensors --embeddings=",
        "anchors info --anchors=",
        "anchors check --anchors=A --against=",
        "anchors fake --generator=",
    ],
)
def test_an_empty_path_is_refused(flags, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command, *rest = flags.split()
    module, words = COMMANDS[command]
    with pytest.raises(UserError, match="an empty path"):
        _run(module, [*words, *rest], monkeypatch)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("rescore --embeddings=gs://bucket/x.npy", "mount the bucket as a folder"),
        ("embed --output=s3://bucket/x.npy", "mount the bucket as a folder"),
        ("train --config=quickstart --workdir=gs://bucket/run", "mount the bucket as a folder"),
        ("anchors info --anchors=https://host/a.safetensors", "copy the file and name the copy"),
    ],
)
def test_an_address_is_no_path(flags, line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command, *rest = flags.split()
    module, words = COMMANDS[command]
    with pytest.raises(UserError, match=f"is an address, not a file's path: .*{line}"):
        _run(module, [*words, *rest], monkeypatch)
    assert not list(tmp_path.iterdir())


def test_home(monkeypatch, tmp_path):
    """A shell leaves the ~ of --data_dir=~/x alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = Parser("x", description=None)
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument_group("others").add_argument("--names", type=Path)
    options = parser.parse_args(["--data_dir=~/x", "--names", "~/n"])
    assert (options.data_dir, options.names) == (tmp_path / "x", tmp_path / "n")
    assert parser.parse_args([]).data_dir == Path("data")
    with pytest.raises(UserError, match="names the home folder of an unknown user"):
        parser.parse_args(["--data_dir=~nobody_here/x"])


def test_a_mistyped_flag_is_named_before_the_required_one_that_it_stands_for():
    from ida_jax import rescore

    given = ["--embeddings=E.npy", "--pairs=P.npy", "--outptu=S.npy"]
    with pytest.raises(UserError, match=r"unknown flag '--outptu': did you mean --output\?"):
        rescore.main(given)
    with pytest.raises(UserError, match="the following arguments are required: --output"):
        rescore.main(given[:2])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (fit, ["csn", "--embeddings=E", "--labels=L", "--anchors=A", "--output=F"]),
        (anchors, ["build", "--embeddings=E", "--output=A.safetensors"]),
        (anchors, ["fake", "--model=M", "--generator=G", "--output=A.safetensors"]),
        (evaluate, ["--scores=S", "--labels=L"]),
        (evaluate, ["--protocol=lfw", "--embeddings=E", "--pairs=P"]),
        (trial, ["--demo", "--output=D"]),
    ],
)
@pytest.mark.parametrize("seed", ["-1", "1.5", "", "1" * 20])
def test_a_seed_is_a_whole_number_of_0_or_more(command, words, seed):
    with pytest.raises(UserError, match=r"--seed: '.*': expected a whole number of 0 or more"):
        command.main([*words, f"--seed={seed}"])
