"""What the head's benchmark claims: memory that does not grow, and a peer that does the same."""

import bench_head
import jax
import numpy as np
import pytest
from workers import Failed, Worker

from ida_jax.ops.class_optimizers import ClassWeights


@pytest.mark.parametrize(
    "case",
    [
        # Of these sizes XLA fuses some otherwise than others.
        *(bench_head.Case(block) for block in (64, 256, 1000, 4096)),
        bench_head.Case(256, dtype="bfloat16"),
    ],
)
def test_a_blockwise_step_needs_no_copy_of_the_weights(case):
    width = 32
    few, many = (
        bench_head.needs(
            bench_head.compiled_step(case, classes=classes, batch_size=16, width=width)
        )
        for classes in (10_000, 1_000_000)
    )
    assert many["state"] - few["state"] == 990_000 * width * 4 * 2
    assert abs(many["temporary"] - few["temporary"]) < 10_000


def test_the_peer_takes_the_same_step():
    torch = pytest.importorskip("torch")
    from torch_head import ArcFaceHead

    rows, width, classes = 16, 8, 21
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(rows, width)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = rng.integers(0, classes, rows, np.int32)
    # Where θ + m passes π, too.
    embeddings[1] = -embeddings[0]
    labels[1] = labels[0]
    before = rng.normal(size=(classes, width)).astype(np.float32)
    before[labels[0]] = embeddings[0]
    head = ArcFaceHead(classes, width)
    head.weight.data = torch.tensor(before)
    inputs = torch.tensor(embeddings, requires_grad=True)
    loss = head(inputs, torch.tensor(labels).long())
    loss.backward()
    after = before - 0.1 * (head.weight.grad.numpy() + 5e-4 * before)

    step = bench_head.compiled_step(
        bench_head.Case(8), classes=classes, batch_size=rows, width=width
    )
    weight = jax.numpy.asarray(before[:, None])
    state = ClassWeights(weight, jax.numpy.zeros_like(weight))
    state, gradient, our_loss = step(state, embeddings, labels)
    # PyTorch's is by the embedding before its normalisation.
    gradient = np.asarray(gradient)
    gradient = gradient - np.sum(gradient * embeddings, axis=1, keepdims=True) * embeddings
    np.testing.assert_allclose(our_loss, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient[2:], inputs.grad.numpy()[2:], rtol=1e-5, atol=1e-5)
    others = np.arange(classes) != labels[0]
    np.testing.assert_allclose(
        np.asarray(state.weight)[others, 0], after[others], rtol=1e-5, atol=1e-5
    )


def _program(fail):
    def add(a, b):
        if b == fail:
            raise ValueError("no such number\nand more")
        return a + b

    return {"add": add}


def test_a_worker_answers_and_tells_what_fails():
    with Worker(_program, 3) as worker:
        assert worker.ask("add", 1, 2) == 3
        with pytest.raises(Failed, match=r"^ValueError: no such number$"):
            worker.ask("add", 1, 3)
        assert worker.ask("add", 2, 2) == 4
    with pytest.raises(Failed, match="ended"):
        worker.ask("add", 1, 2)
