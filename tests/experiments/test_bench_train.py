"""The training benchmark runs where the packages that read data and configs are not installed."""

import os
import subprocess
import sys
from pathlib import Path

import bench_train
import pytest
from environment import with_devices

_REPOSITORY = Path(__file__).parents[2]
_SCRIPT = """
import sys
for package in ("ml_collections", "ml_collections.config_dict", "grain", "tensorflow_datasets",
                "array_record", "scann"):
    sys.modules[package] = None
import train_workers
options = dict(network="iresnet_nano", image_size=16, embedding_dim=8, dtype="float32",
               batch_size=4, classes=10)
program = train_workers.ours(options, "remat=true+margin=0.4+class_block=4")
assert program["run"](2, "host") > 0
assert program["memory"]()["temporary_bytes"] > 0
parts = program["profile"](sys.argv[1])["ms_by_part"]
assert parts["head"] > 0 and parts["backward stage1 conv1"] > 0, parts
assert train_workers.machine(options)["describe"]()["flops_per_image"] > 0
"""


def test_our_step_runs_and_is_profiled_without_them(tmp_path):
    path = os.pathsep.join(map(str, (_REPOSITORY, _REPOSITORY / "experiments")))
    environment = with_devices(1) | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


class _Fake:
    """A worker that takes 2 s for what the other does in 1 s."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def ask(self, name, steps, source):
        self.asked.append((name, steps, source))
        return self.seconds * steps


def test_rounds_take_turns_and_give_the_ratio():
    options = bench_train._options(["--small", "--steps=3", "--repeats=2", "--batch-size=10"])
    ours, peer = _Fake(1.0), _Fake(2.0)
    record = bench_train._rounds(options, ours, peer, "host")
    assert ours.asked == peer.asked == [("run", 1, "host"), ("run", 3, "host"), ("run", 3, "host")]
    assert record["ours_images_per_second"] == 10.0
    assert record["torch_images_per_second"] == 5.0
    assert record["ratios"] == [2.0, 2.0]
    bench_train._add_utilisation({"host": record}, 4.0, {"data_sheet": None, "matrix_product": 80})
    assert record["ours_mfu_of_matrix_product"] == pytest.approx(0.5)
    assert "ours_mfu_of_data_sheet" not in record
