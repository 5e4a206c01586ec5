import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.report.density_plots import privacy_figure
from ida_jax.report.training_plots import generator_training_figure


def test_privacy_figure_draws_both_densities_and_the_threshold(tmp_path):
    rng = np.random.default_rng(0)
    made = np.append(rng.normal(0.4, 0.05, 199), [0.9, np.nan]).astype(np.float32)
    strangers = rng.normal(0.5, 0.05, 51)
    figure = privacy_figure(made, strangers, 0.625)
    (axis,) = figure.axes
    (line,) = axis.lines
    assert set(line.get_xdata()) == {0.625}
    generated, real = axis.patches[1], axis.patches[3]
    for drawn, cosines in ((generated, made[:200]), (real, strangers)):
        values, edges, _ = drawn.get_data()
        counts = values * np.diff(edges) * cosines.size
        np.testing.assert_allclose(counts, np.histogram(cosines, edges)[0], atol=1e-9)
    share = 100 * np.mean(strangers > 0.625)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        "200 generated faces, 0.5 % above",
        f"51 real people, to others' faces, {share:.2g} % above",
        "threshold, 0.625",
    ]
    assert generated.get_linestyle() != real.get_linestyle()
    assert "copies" in figure.get_label()
    figure.savefig(tmp_path / "figure.png")


@pytest.mark.parametrize("other", [[], [np.nan]])
def test_privacy_figure_without_faces_of_a_kind_is_refused(other):
    with pytest.raises(UserError, match="no finite cosine of real people"):
        privacy_figure([0.5], other, 0.6)
    with pytest.raises(UserError, match="no finite cosine of generated faces"):
        privacy_figure(other, [0.5], 0.6)


def test_training_figure_draws_what_was_recorded(tmp_path):
    metrics = [{"stage": "gan", "images": 0, "generator_loss": 0.7}]
    metrics += [
        {"images": 1000 * i, "discriminator_loss": 1 / i, "generator_loss": 1 + i,
         "augment_probability": i / 100, "real_logit": 0.1, "fake_logit": None}
        for i in range(1, 8)
    ]  # fmt: skip
    metrics.insert(3, {"images": 2500, "frechet": 0.3, "precision": 0.9, "recall": 0.1})
    metrics += [{"images": 7000, "frechet": 0.2, "precision": 0.8, "recall": 0.2}, {"step": 9}]
    figure = generator_training_figure(metrics)
    axes = {axis.get_title(loc="left"): axis for axis in figure.axes}
    assert list(axes) == [
        "Fréchet distance", "Precision and recall", "Losses", "The discriminator's mean logit",
        "Augmentation probability",
    ]  # fmt: skip

    def drawn(title):
        return {line.get_label(): line.get_xydata().tolist() for line in axes[title].lines}

    assert drawn("Fréchet distance") == {"Fréchet distance": [[2500, 0.3], [7000, 0.2]]}
    assert drawn("Precision and recall") == {
        "precision": [[2500, 0.9], [7000, 0.8]], "recall": [[2500, 0.1], [7000, 0.2]]
    }  # fmt: skip
    assert drawn("Losses")["generator"][:2] == [[0, 0.7], [1000, 2]]
    assert len(drawn("Losses")["discriminator"]) == 7
    assert list(drawn("The discriminator's mean logit")) == ["real faces"]
    assert drawn("Augmentation probability")["probability"][-1] == [7000, 0.07]
    lines = axes["Losses"].lines
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    figure.savefig(tmp_path / "figure.png")


def test_training_figure_smooths_many_records(tmp_path):
    images = 500 * np.arange(400)
    losses = np.random.default_rng(0).normal(size=400)
    metrics = [
        {"images": int(i), "generator_loss": float(x)} for i, x in zip(images, losses, strict=True)
    ]
    figure = generator_training_figure(metrics)
    (axis,) = figure.axes
    logged, smooth = axis.lines[:2]
    np.testing.assert_array_equal(logged.get_ydata(), losses)
    np.testing.assert_array_equal(smooth.get_xdata(), images[5:-4])
    means = [losses[i : i + 10].mean() for i in range(391)]
    np.testing.assert_allclose(smooth.get_ydata(), means, atol=1e-12)
    figure.savefig(tmp_path / "figure.png")


def test_one_record_is_drawn(tmp_path):
    generator_training_figure([{"images": 64, "frechet": 0.5}]).savefig(tmp_path / "figure.png")


@pytest.mark.parametrize("metrics", [[], [{"step": 1, "loss": 0.5}], [{"frechet": 0.5}]])
def test_training_figure_of_other_records_is_refused(metrics):
    with pytest.raises(UserError, match=f"{len(metrics)} records were given, none of a generator"):
        generator_training_figure(metrics)
