"""Table 4's class weights for a model that is given without them."""

import numpy as np
import table4


def test_class_weights_are_fitted_to_frozen_embeddings():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(7), 5)
    faces = np.eye(12)[labels] + 0.05 * rng.normal(size=(35, 12))
    faces = (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32)
    weights, about = table4.fitted_class_weights(faces, labels, epochs=40, batch_size=16)
    np.testing.assert_allclose(np.linalg.norm(weights, axis=1), 1, atol=1e-5)
    assert about["accuracy"] == 1
    assert np.argmax(weights[:, :7], axis=1).tolist() == list(range(7))
    again, _ = table4.fitted_class_weights(faces, labels, epochs=40, batch_size=16)
    np.testing.assert_array_equal(weights, again)
