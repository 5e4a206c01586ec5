"""Checkpoints of a small sharded state on eight devices: whole, torn, restored onto fewer."""

import resource
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ida_jax.common.errors import UserError
from ida_jax.training.checkpoint import open_checkpoints

CLASSES, DIM = 11, 5


class State(NamedTuple):
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    head: Any
    average: Any


def mesh_of(devices: int) -> Mesh:
    return jax.make_mesh(
        (1, devices), ("data", "model"), axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )  # fmt: skip


def make_state(step: int, *, devices: int = 8, classes: int = CLASSES) -> State:
    """Seeded by the step; the classes are padded to the devices with rows of −1."""
    rng = np.random.default_rng(step)
    mesh = mesh_of(devices)
    padded = np.full((classes + -classes % devices, DIM), -1, np.float32)
    padded[:classes] = rng.standard_normal((classes, DIM), np.float32)
    params = {"conv": {"kernel": rng.standard_normal((3, 3, 4000), np.float32)}, "scale": 1.5}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = State(
        jnp.int32(step), params, {"mean": jnp.arange(3.0) + step},
        optax.sgd(0.1, momentum=0.9).init(params), {"weight": padded, "norms": jnp.float32(2)},
        None,
    )  # fmt: skip
    split = NamedSharding(mesh, PartitionSpec("model"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: everywhere, state)
    shardings.head["weight"] = split
    return jax.device_put(state, shardings)


def assert_same(restored: State, expected: State) -> None:
    """Values, types and shardings, but for the head's padding."""
    assert jax.tree.structure(restored) == jax.tree.structure(expected)

    def same(a: jax.Array, b: jax.Array) -> None:
        assert a.sharding == b.sharding
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        real = slice(CLASSES) if a.ndim else ...
        np.testing.assert_array_equal(np.asarray(a)[real], np.asarray(b)[real])

    jax.tree.map(same, restored, expected)


def save_steps(folder, steps, **accuracies):
    with open_checkpoints(folder, num_classes=CLASSES) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), accuracy=accuracies.get(f"at_{step}"))


def whole_steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.parametrize("devices", [8, 2, 1, 3])
def test_a_state_of_eight_devices_is_restored_onto_others(tmp_path, capsys, devices):
    save_steps(tmp_path, [6])
    expected = make_state(6, devices=devices)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), expected
    )
    with open_checkpoints(tmp_path, num_classes=CLASSES) as checkpoints:
        restored = checkpoints.restore(like)
    assert restored.step == 6
    assert_same(restored.state, expected)
    assert capsys.readouterr().err == ""  # this process had eight devices both times


def test_another_device_count_is_told(tmp_path, capsys, monkeypatch):
    save_steps(tmp_path, [6])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    with open_checkpoints(tmp_path, num_classes=CLASSES) as checkpoints:
        checkpoints.restore(make_state(6))
    assert "saved by 8 devices" in capsys.readouterr().err


def test_an_empty_folder_has_none(tmp_path):
    with open_checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(make_state(0)) is None
        assert checkpoints.restore_best(make_state(0)) is None


def test_a_state_may_be_donated_once_save_has_returned(tmp_path):
    overwrite = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
    with open_checkpoints(tmp_path, num_classes=CLASSES) as checkpoints:
        for step in (1, 2, 3):
            state = make_state(step)
            checkpoints.save(step, state)
            jax.block_until_ready(overwrite(state))
        restored = checkpoints.restore(make_state(0))
    assert restored.step == 3
    assert_same(restored.state, make_state(3))


def test_the_last_two_and_the_best_are_kept(tmp_path):
    save_steps(tmp_path, [1, 2, 3], at_1=0.7, at_2=0.9, at_3=float("nan"))
    save_steps(tmp_path, [4, 5, 6], at_4=0.8)  # a resumed run knows the best of the first
    assert whole_steps(tmp_path) == [2, 5, 6]
    with open_checkpoints(tmp_path, num_classes=CLASSES) as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 6
        best = checkpoints.restore_best(make_state(0))
        checkpoints.save(7, make_state(7), accuracy=0.9)  # of equals the newer
    assert best.step == 2
    assert_same(best.state, make_state(2))
    assert whole_steps(tmp_path) == [6, 7]


def test_a_step_that_is_there_is_not_written_again(tmp_path):
    save_steps(tmp_path, [3])
    with open_checkpoints(tmp_path, num_classes=CLASSES) as checkpoints:
        checkpoints.save(3, make_state(4))
        assert_same(checkpoints.restore(make_state(0)).state, make_state(3))


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(folder):
    file = largest(folder)
    file.write_bytes(file.read_bytes()[:-100])


def flip(folder):
    file = largest(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "cut": cut,
    "flipped": flip,
    "deleted": lambda folder: largest(folder).unlink(),
    "no metadata": lambda folder: (folder / "_CHECKPOINT_METADATA").write_bytes(b""),
    "no metrics": lambda folder: (folder / "metrics" / "metrics").write_bytes(b""),
    "no names": lambda folder: (folder / "state" / "_METADATA").write_bytes(b"{"),
    "no checksums": lambda folder: (folder / "checksums.json").unlink(),
    "a list of checksums": lambda folder: (folder / "checksums.json").write_bytes(b"[]"),
    "a number for a file": lambda folder: (folder / "checksums.json").write_bytes(b'{"a": 3}'),
    "no end": lambda folder: (folder / "checksums.json").write_bytes(b'{"/dev/zero": [0, 0]}'),
    "garbled checksums": lambda folder: (folder / "checksums.json").write_bytes(b"\xff[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_falls_back_and_says_so(tmp_path, capsys, damage):
    save_steps(tmp_path, [3, 6], at_6=0.5)
    DAMAGE[damage](tmp_path / "6")
    with open_checkpoints(tmp_path, num_classes=CLASSES) as checkpoints:
        message = capsys.readouterr().err
        restored = checkpoints.restore(make_state(0))
        checkpoints.save(6, make_state(6))
    assert restored.step == 3
    assert_same(restored.state, make_state(3))
    assert message.count("\n") == 1
    assert f"{tmp_path / '6'} is damaged" in message
    assert "step 3" in message
    assert (tmp_path / "corrupt-6").is_dir()
    assert whole_steps(tmp_path) == [3, 6]


def test_the_same_step_damaged_twice_loses_nothing(tmp_path):
    save_steps(tmp_path, [3, 6])
    cut(tmp_path / "6")
    save_steps(tmp_path, [6])
    cut(tmp_path / "6")
    save_steps(tmp_path, [6])
    assert len(list(tmp_path.glob("corrupt-6*"))) == 2
    assert whole_steps(tmp_path) == [3, 6]


def test_all_damaged_is_an_error_every_time_and_changes_nothing(tmp_path):
    save_steps(tmp_path, [3, 6])
    flip(tmp_path / "6")
    cut(tmp_path / "3")
    for _ in range(2):
        with (
            pytest.raises(UserError, match=r"every checkpoint in .* step 3"),
            open_checkpoints(tmp_path),
        ):
            pass
    assert whole_steps(tmp_path) == [3, 6]


def test_a_damaged_best_gives_way_to_the_next(tmp_path, capsys):
    save_steps(tmp_path, [1, 2, 3], at_1=0.9, at_2=0.7, at_3=0.8)
    with open_checkpoints(tmp_path, num_classes=CLASSES) as checkpoints:
        flip(tmp_path / "1")
        best = checkpoints.restore_best(make_state(0))
    assert best.step == 3
    assert "1 is damaged" in capsys.readouterr().err


def test_an_unfinished_folder_is_cleared_away(tmp_path):
    save_steps(tmp_path, [3])
    (tmp_path / "6.orbax-checkpoint-tmp").mkdir()
    with open_checkpoints(tmp_path, num_classes=CLASSES) as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 3
        checkpoints.save(6, make_state(6))
    assert whole_steps(tmp_path) == [3, 6]
    assert not list(tmp_path.glob("*tmp*"))


def wider(state):
    kernel = jnp.zeros((3, 3, 4001), jnp.float32)
    return state._replace(params={**state.params, "conv": {"kernel": kernel}})


def halved(state):
    return state._replace(batch_stats={"mean": state.batch_stats["mean"].astype(jnp.bfloat16)})


@pytest.mark.parametrize(
    ("change", "num_classes", "message"),
    [
        (wider, CLASSES, r"params/conv/kernel as float32\[3, 3, 4000\].*\[3, 3, 4001\]"),
        (halved, CLASSES, r"batch_stats/mean as float32.*bfloat16"),
        (lambda s: s._replace(average=jnp.float32(0)), CLASSES, "has no average"),
        (lambda s: s._replace(batch_stats={}), CLASSES, "has batch_stats/mean"),
        (lambda s: s, 12, "11 classes and this run has 12"),
        (lambda s: s._replace(head={**s.head, "weight": s.head["weight"][:10]}), CLASSES, "head/"),
        (lambda s: s._replace(head={**s.head, "weight": s.head["weight"][:, :4]}), CLASSES, "head"),
    ],
)
def test_another_configs_state_is_told_apart_from_damage(tmp_path, change, num_classes, message):
    save_steps(tmp_path, [3])
    like = change(make_state(0))
    with (
        pytest.raises(UserError, match=message),
        open_checkpoints(tmp_path, num_classes=num_classes) as checkpoints,
    ):
        checkpoints.restore(like)
    assert whole_steps(tmp_path) == [3]


@pytest.mark.parametrize("call", ["wait", "save", "leave"])
def test_a_full_disk_is_the_users_to_mend(tmp_path, call):
    save_steps(tmp_path, [3])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        with open_checkpoints(tmp_path, num_classes=CLASSES) as checkpoints:
            checkpoints.save(6, make_state(6))
            if call == "wait":
                checkpoints.wait()
            if call == "save":
                checkpoints.save(9, make_state(9))

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"could not be written to .*test_a_full"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    save_steps(tmp_path, [9])
    assert whole_steps(tmp_path) == [3, 9]


def test_an_error_of_the_body_is_the_one_that_comes_out(tmp_path):
    def fail():
        with open_checkpoints(tmp_path, num_classes=CLASSES) as checkpoints:
            checkpoints.save(3, make_state(3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert whole_steps(tmp_path) == [3]
