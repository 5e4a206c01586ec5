import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.data.dataset import FaceDataset
from ida_jax.data.pipeline import training_batches


def _dataset(n=23, classes=5):
    # Column 0 differs from column 1, so that a mirrored image is seen.
    images = np.zeros((n, 4, 2, 3), np.uint8)
    images[:, :, 0] = np.arange(n)[:, None, None]
    images[:, :, 1] = 200
    labels = (np.arange(n) % classes).astype(np.int32)
    return FaceDataset(images, labels, tuple(map(str, range(classes))))


def _take(iterator, count):
    taken = [next(iterator) for _ in range(count)]
    iterator.close()
    return taken


def _numbers(batch):
    return np.minimum(batch.images[:, 0, 0, 0], batch.images[:, 0, 1, 0])


def _assert_equal(some, others):
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("n", [1, 4, 5, 6, 23])  # around the batch size
def test_epochs_are_shuffled_and_complete(n):
    batches = _take(training_batches(_dataset(n), batch_size=5, seed=0), 14)
    seen = np.concatenate([_numbers(b) for b in batches])
    epochs = [seen[n * epoch : n * (epoch + 1)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    if n > 5:
        assert not np.array_equal(epochs[0], epochs[1])
    labels = np.concatenate([b.labels for b in batches])
    np.testing.assert_array_equal(labels, seen % 5)
    assert batches[0].images.dtype == np.uint8
    assert labels.dtype == np.int32


def test_the_seed_decides_the_order():
    orders = [
        np.concatenate([_numbers(b) for b in _take(training_batches(_dataset(), batch_size=23,
                                                                    seed=seed), 2)])
        for seed in (0, 1)
    ]  # fmt: skip
    assert not np.array_equal(orders[0], orders[1])
    # One seed's second epoch is not the next seed's first.
    assert not np.array_equal(orders[0][23:], orders[1][:23])


@pytest.mark.parametrize("first_step", [0, 1, 6])
def test_a_resumed_run_sees_the_same_batches(first_step):
    options = {"batch_size": 5, "seed": 3, "augment": "low_quality"}
    whole = _take(training_batches(_dataset(), **options), 9)[first_step:]
    resumed = training_batches(_dataset(), first_step=first_step, threads=1, **options)
    _assert_equal(whole, _take(resumed, len(whole)))


@pytest.mark.parametrize("shards", [1, 2, 3, 6])
def test_the_hosts_parts_are_the_batch_of_one_host(shards):
    options = {"batch_size": 6, "seed": 3, "first_step": 2, "augment": "low_quality"}
    whole = _take(training_batches(_dataset(), **options), 5)
    parts = [
        _take(training_batches(_dataset(), shard=shard, shards=shards, **options), 5)
        for shard in range(shards)
    ]
    for number, batch in enumerate(whole):
        for field in ("images", "labels"):
            joined = np.concatenate([getattr(part[number], field) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, field))


def test_the_order_does_not_depend_on_the_batch_size():
    small = _take(training_batches(_dataset(), batch_size=4, seed=0), 6)
    large = _take(training_batches(_dataset(), batch_size=12, seed=0), 2)
    for field in ("images", "labels"):
        np.testing.assert_array_equal(
            *(np.concatenate([getattr(b, field) for b in batches]) for batches in (small, large))
        )


def test_about_half_the_images_are_mirrored_anew_each_epoch():
    batches = _take(training_batches(_dataset(50), batch_size=50, seed=0), 8)
    mirrored = np.zeros((8, 50), bool)
    for epoch, batch in enumerate(batches):
        mirrored[epoch, _numbers(batch)] = batch.images[:, 0, 0, 0] == 200
    assert 0.4 < mirrored.mean() < 0.6
    assert np.all(mirrored.mean(0) < 1)
    never = _take(training_batches(_dataset(), batch_size=50, seed=0, augment="none"), 2)
    assert not any((batch.images[:, 0, 0, 0] == 200).any() for batch in never)


def test_mistakes_are_told_before_the_first_batch():
    data = _dataset()
    with pytest.raises(UserError, match="label 4 of row 4 is outside the 4 classes"):
        training_batches(data._replace(identities=data.identities[:4]), batch_size=2, seed=0)
    with pytest.raises(UserError, match="no faces"):
        training_batches(data._replace(labels=data.labels[:0]), batch_size=2, seed=0)
    for options, message in (
        ({"batch_size": 7, "shards": 2}, "a batch of 7 cannot be shared out over 2 hosts"),
        ({"batch_size": 0}, "a batch of 0"),
        ({"shard": 2, "shards": 2}, "shard 2 is not one of the 2"),
        ({"seed": -1}, "seed -1"),
        ({"threads": 0}, "threads 0"),
        ({"augment": "much"}, "augment 'much' is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            training_batches(data, **{"batch_size": 8, "seed": 0, **options})


class _Images:
    """Images of which one is bad; in a worker each also says whether JAX has been started."""

    def __init__(self, images, bad=None):
        self._images, self._bad = images, bad

    def __getitem__(self, row):
        if row == self._bad:
            raise UserError(f"the image of row {row} cannot be decoded")
        if multiprocessing.parent_process():
            from jax._src import xla_bridge

            assert not xla_bridge.backends_are_initialized()
        return self._images[row]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_ends_the_batches(workers):
    data = _dataset()
    data = data._replace(images=_Images(data.images, bad=17))
    batches = training_batches(data, batch_size=5, seed=0, workers=workers)
    with pytest.raises(UserError, match="image of row 17 cannot be decoded"):
        _take(batches, 5)


def test_an_image_of_another_size_is_named():
    data = _dataset(3)
    images = [*data.images[:2], np.zeros((5, 2, 3), np.uint8)]
    with pytest.raises(UserError, match=r"row \d is \(\d, 2, 3\) and that of row \d \(\d, 2, 3\)"):
        next(training_batches(data._replace(images=images), batch_size=3, seed=0))


def _loader_processes():
    return [p for p in multiprocessing.active_children() if p.name.startswith("grain")]


def test_worker_processes_give_the_same_batches_and_their_death_is_told():
    data = _dataset()
    data = data._replace(images=_Images(data.images))
    options = {"batch_size": 5, "seed": 3, "first_step": 1, "augment": "low_quality"}
    expected = _take(training_batches(data, **options), 7)
    batches = training_batches(data, workers=2, threads=1, **options)
    _assert_equal(expected[:4], [next(batches) for _ in range(4)])
    workers = _loader_processes()
    assert len(workers) == 2
    # A job's SIGTERM and a terminal's Ctrl-C reach every process; the trainer alone decides.
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    _assert_equal(expected[4:], [next(batches) for _ in range(3)])
    os.kill(workers[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match="a loader process ended while it made batch"):
        list(itertools.islice(batches, 50))
    for worker in workers:
        worker.join(timeout=30)
        assert not worker.is_alive()
    assert not _loader_processes()


def test_worker_processes_end_with_a_trainer_that_is_killed(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import numpy as np, time
        from ida_jax.data.dataset import FaceDataset
        from ida_jax.data.pipeline import training_batches
        if __name__ == "__main__":
            data = FaceDataset(np.zeros((3, 4, 4, 3), np.uint8), np.zeros(3, np.int32), ("a",))
            batches = training_batches(data, batch_size=2, seed=0, workers=1)
            next(batches)
            print("ready", flush=True)
            time.sleep(60)
    """)
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout.readline() == "ready\n"
        trainer.kill()
        start = time.monotonic()
        # The worker holds the same pipe: its end is the pipe's.
        assert trainer.stdout.read() == ""
        assert time.monotonic() - start < 20
