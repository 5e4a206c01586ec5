"""The command that a record carries is the one that was typed."""

import pytest

from ida_jax.common.provenance import command_line


@pytest.mark.parametrize(
    ("argv", "typed"),
    [
        (["/venv/bin/python", "/venv/bin/ida-jax", "trial", "--demo"], "ida-jax trial --demo"),
        (["python", "-m", "ida_jax.main", "--title=a b"], "python -m ida_jax.main '--title=a b'"),
        (["python3.12", "experiments/fig6.py"], "python experiments/fig6.py"),
        (["python"], "python"),
    ],
)
def test_command(argv, typed):
    assert command_line(argv) == typed
