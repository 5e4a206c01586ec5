import json
import subprocess
import sys
import textwrap

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from ida_jax.common.errors import Damaged
from ida_jax.training.loop import open_metrics, read_metrics


def _events(folder):
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            record, crc = content[12 : 12 + length], content[12 + length : 16 + length]
            assert crc == masked_crc32c(record).to_bytes(4, "little")
            found.append(Event.FromString(record))
            content = content[16 + length :]
    return found


def test_records_go_to_both_files(tmp_path):
    with open_metrics(tmp_path, stage="train", first_step=4) as write:
        write(5, {"loss": 2.5, "lr": 0.125})
        # Nothing waits in memory for the end.
        assert [record["step"] for record in read_metrics(tmp_path)] == [5]
        write(6, {"loss": 1.5})
    events = _events(tmp_path / "tensorboard" / "train")
    assert [event.step for event in events if event.HasField("session_log")] == [5]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(5, "loss", 2.5), (5, "lr", 0.125), (6, "loss", 1.5)]


def test_records_after_the_last_checkpoint_are_dropped(tmp_path):
    with open_metrics(tmp_path, stage="train") as write:
        for step in range(1, 6):
            write(step, {"loss": 1.0})
    with open_metrics(tmp_path, stage="ssr") as write:
        write(9, {"loss": 1.0})
    with open_metrics(tmp_path, stage="train", first_step=3) as write:
        write(4, {"loss": 2.0})
    found = [(r["stage"], r["step"], r["loss"]) for r in read_metrics(tmp_path)]
    assert found == [("train", 1, 1), ("train", 2, 1), ("train", 3, 1), ("ssr", 9, 1),
                     ("train", 4, 2)]  # fmt: skip


_FULL = textwrap.dedent("""
    import resource, sys
    from ida_jax.common.errors import exit_code
    from ida_jax.training.loop import open_metrics
    def run():
        with open_metrics(sys.argv[1], stage="train") as write:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            for step in range(1, 2000):
                write(step, {"loss": 1.0, "another": 2.0})
    sys.exit(exit_code(run))
""")


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    pytest.importorskip("resource")
    command = [sys.executable, "-c", _FULL, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: cannot write ")
    assert ended.stderr.count("\n") == 1
    assert "make room" in ended.stderr
    steps = [record["step"] for record in read_metrics(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 20
    with open_metrics(tmp_path, stage="train", first_step=10) as write:
        write(11, {"loss": 3.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 12))


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"null", b"[]", b"3", b"{}", b'{"stage": "train"}', b'{"step": 1}', b"\xff\xfe",
        b'{"stage": 1, "step": 1}', b'{"stage": "train", "step": "1"}', b"[" * 100_000,
        b'{"stage": "train", "step": 1, "loss": [1]}', b'{"stage": "train", "step": true}',
        b'{"stage": "train", "step": 1, "loss": "low"}',
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path, line):
    whole = b'{"stage": "train", "step": 1, "loss": NaN, "frechet": null}\n'
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(Damaged, match=r"metrics\.jsonl:2 is damaged: not a training record"):
        read_metrics(tmp_path)
    with (
        pytest.raises(Damaged, match=r"metrics\.jsonl:2"),
        open_metrics(tmp_path, stage="train"),
    ):
        pass
    assert path.read_bytes() == whole + line + b"\n" + whole
    path.write_bytes(whole + line)  # cut off by a kill
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]
