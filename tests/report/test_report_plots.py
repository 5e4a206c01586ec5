import numpy as np
import pytest
from scipy.special import ndtr

from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import Band
from ida_jax.metrics.roc import roc_curve, tar_at_far
from ida_jax.report.density_plots import histogram_figure, log_density_figure
from ida_jax.report.rate_plots import (
    det_figure,
    distractors_figure,
    roc_figure,
    sweep_figure,
    tpir_figure,
)
from ida_jax.report.training_plots import training_figure


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(0.6, 0.1, 401), rng.normal(0, 0.1, 5003)
    return {
        "cosine": (genuine, impostor),
        "ida_r": (genuine - 2.4, impostor - 2.45),
        "another": (genuine.astype(np.float32), np.append(impostor, np.nan).astype(np.float32)),
    }


def curve_of(split, width=0.01):
    curve = roc_curve(*split)
    return Band(curve.far, curve.tar, curve.tar - width, curve.tar + width)


@pytest.fixture(scope="module")
def curves(scores):
    return {method: curve_of(kinds) for method, kinds in scores.items()}


@pytest.mark.parametrize(
    ("draw", "count", "gain"),
    [
        (roc_figure, "impostor", "tar_gain_interval@far"),
        (tpir_figure, "nonmated_probes", "tpir_gain_interval@fpir"),
    ],
)
def test_rate_figures_draw_curves_bands_and_gains(curves, draw, count, gain):
    figures = {
        "cosine": {count: 5003},
        "ida_r": {count: 5003, gain: {"0.01": [-0.02, 0.03], "0.001": [None, None]}},
    }
    figure = draw(curves, figures=figures)
    left, right = figure.axes
    by_name = {line.get_label(): line for line in left.lines}
    assert list(by_name) == ["Cosine", "IDA-R", "another"]
    np.testing.assert_array_equal(by_name["IDA-R"].get_ydata(), curves["ida_r"].tar)
    gains = 100 * (curves["ida_r"].tar - curves["cosine"].tar)
    np.testing.assert_allclose(right.lines[1].get_ydata(), gains, atol=1e-9)
    np.testing.assert_allclose(right.lines[0].get_ydata(), 0, atol=1e-12)
    # Told apart by more than colour.
    for look in ("get_linestyle", "get_marker", "get_color"):
        assert len({getattr(line, look)() for line in left.lines[:2]}) == 2
    # The bands of cosine and of the IDA; a gain's bar from -2 to 3 points near FAR 1e-2.
    assert len(left.collections) == 2
    (bar,) = right.collections
    (segment,) = bar.get_segments()
    np.testing.assert_allclose(segment[:, 1], [-2, 3])
    assert 0.008 < segment[0, 0] < 0.0125
    (shaded,) = left.patches
    assert shaded.get_x() + shaded.get_width() == pytest.approx(10 / 5003)
    assert "95 %" in figure.get_label()
    assert "fewer than ten" in figure.get_label()
    assert len(draw({"ida_r": curves["ida_r"]}).axes) == 1


def test_the_band_is_of_the_best_ida(curves, tmp_path):
    none = np.full(len(curves["ida_r"].far), np.nan)
    lower = Band(curves["ida_r"].far, 0.9 * curves["ida_r"].tar, none, none)
    figure = roc_figure({"ida_r": lower, "ida_l": curves["ida_r"], "as_norm": curves["cosine"]})
    (band,) = figure.axes[0].collections
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "IDA-L")
    assert band.get_facecolor()[0, :3] == pytest.approx(
        [int(line.get_color()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    )
    figure.savefig(tmp_path / "figure.png")


@pytest.mark.parametrize("n", [1, 5, 50])
def test_rate_figures_of_few_impostors(n, tmp_path):
    curve = curve_of(([0.5, 2.0], np.arange(n) / n))
    for draw in (roc_figure, tpir_figure):
        figure = draw({"cosine": curve, "ida_l": curve}, figures={"cosine": {"impostor": n}})
        figure.savefig(tmp_path / "figure.png")
    det_figure({"cosine": curve}).savefig(tmp_path / "figure.png")


def test_a_far_of_0_is_left_out(tmp_path):
    ends = (np.array(each) for each in ([0, 0.1, 1], [0.4, 0.5, 1], [0, 0.4, 1], [1, 0.6, 1]))
    figure = roc_figure({"cosine": Band(*ends)})
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [0.1, 1])
    figure.savefig(tmp_path / "figure.png")


def test_det_figure_is_on_normal_deviates(curves):
    (axis,) = det_figure(curves).axes
    line = axis.lines[1]
    assert line.get_label() == "IDA-R"
    far, tar = curves["ida_r"][:2]
    inside = (far < 1) & (tar > 0) & (tar < 1)
    np.testing.assert_allclose(ndtr(line.get_xdata()), far[inside], rtol=1e-9)
    np.testing.assert_allclose(ndtr(line.get_ydata()), 1 - tar[inside], rtol=1e-9)
    ticks = dict(zip(axis.get_xticks(), axis.get_xticklabels(), strict=True))
    for place, label in ticks.items():
        assert float(label.get_text().removesuffix(" %")) == pytest.approx(100 * ndtr(place))


def test_sweep_figure(tmp_path):
    sweeps = {
        "k": {"values": [1, 5, 50],
              "tar@far": {"0.001": [0.9, 0.91, 0.92], "1e-05": [0.5, 0.6, 0.5]},
              "cosine": {"0.001": 0.89, "1e-05": 0.4}},
        "tau": {"values": [1.0], "tar@far": {"0.001": [0.9]}},
    }  # fmt: skip
    figure = sweep_figure(sweeps)
    k, tau, strict_k, strict_tau = figure.axes
    np.testing.assert_array_equal(k.lines[0].get_xydata(), [[1, 0.9], [5, 0.91], [50, 0.92]])
    np.testing.assert_array_equal(strict_k.lines[0].get_ydata(), [0.5, 0.6, 0.5])
    assert list(strict_k.lines[1].get_ydata()) == [0.4, 0.4]
    assert strict_k.lines[1].get_linestyle() == "--"
    np.testing.assert_array_equal(tau.lines[0].get_xydata(), [[1, 0.9]])
    assert not strict_tau.lines
    assert [label.get_text() for label in k.get_xticklabels()] == ["1", "5", "50"]
    figure.savefig(tmp_path / "figure.png")


def test_distractors_figure(tmp_path):
    figures = {
        "ida_r": {
            "rank1@distractors": {"1000000": 0.8, "10": 0.99, "100": 0.95},
            "rank1_interval@distractors": {"10": [0.98, 1.0]},
        },
        "cosine": {"rank1@distractors": {"10": 0.97}},
        "pfe": {"eer": 0.1},
    }
    figure = distractors_figure(figures)
    (axis,) = figure.axes
    cosine, ida = axis.lines
    np.testing.assert_array_equal(cosine.get_xydata(), [[10, 0.97]])
    np.testing.assert_array_equal(ida.get_xydata(), [[10, 0.99], [100, 0.95], [1e6, 0.8]])
    (bar,) = axis.collections
    np.testing.assert_array_equal(bar.get_segments()[0][:, 1], [0.98, 1.0])
    figure.savefig(tmp_path / "figure.png")


def test_histogram_figure_marks_the_threshold(scores):
    figure = histogram_figure(scores, far=1e-2)
    for axis, (genuine, impostor) in zip(figure.axes, scores.values(), strict=True):
        (point,) = tar_at_far(genuine, impostor, [1e-2])
        assert axis.lines[0].get_xdata()[0] == point.threshold
        assert f"{100 * point.tar:.2f} %" in axis.get_title(loc="left")
        assert axis.get_yscale() == "log"
        for patch in axis.patches:
            values, edges, _ = patch.get_data()
            assert np.sum(values * np.diff(edges)) == pytest.approx(1)


def test_histogram_figure_of_odd_scores(tmp_path):
    same, nan = np.full(3, 0.5), np.full(3, np.nan)
    odd = {"a": (same, same), "b": (nan, same), "c": (same, nan), "d": (same, same)}
    figure = histogram_figure(odd, far=0.5)
    assert len(figure.axes) == 4
    figure.savefig(tmp_path / "figure.png")


def test_log_density_figure_separates_domains(tmp_path):
    domains = np.array([1, 1, 1, 3, 3, 0, 1, 0])
    values = np.array([-2.0, -2.1, -2.2, -3.0, -3.0, -1.0, np.nan, -np.inf])
    figure = log_density_figure(values, domains, ["a", "b", "c", "d"])
    (axis,) = figure.axes
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["a\n1 faces", "b\n3 faces", "d\n2 faces"]
    dots = [line for line in axis.lines if line.get_marker() == "."]
    for place, (line, domain) in enumerate(zip(dots, [0, 1, 3], strict=True)):
        shown = values[(domains == domain) & np.isfinite(values)]
        np.testing.assert_array_equal(np.sort(line.get_ydata()), np.sort(shown))
        assert np.abs(line.get_xdata() - place).max() < 0.5
    assert dots[0].get_color() == dots[1].get_color() != dots[2].get_color()
    figure.savefig(tmp_path / "figure.png")


def test_training_figure_reads_records(tmp_path):
    records = [{"step": 0, "loss": 3.0}, {"step": 1, "accuracy": 1.0}, {"step": 2, "loss": 1.0}]
    (loss,) = training_figure(records).axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[0, 3], [2, 1]])
    records += [{"step": 3, "loss": float("nan"), "learning_rate": 0.1}]
    figure = training_figure(records)
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xydata(), [[3, 0.1]])
    figure.savefig(tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: roc_figure({}), "no curves"),
        (lambda: tpir_figure({}), "no curves"),
        (lambda: det_figure({}), "no curves"),
        (lambda: sweep_figure({}), "no sweep"),
        (
            lambda: sweep_figure({"k": {"values": [1, 5], "tar@far": {"0.1": [0.5]}}}),
            "2 values and 1 TARs",
        ),
        (lambda: distractors_figure({"cosine": {}}), "no method"),
        (lambda: histogram_figure({}), "no scores"),
        (lambda: histogram_figure({"a": ([], [1.0])}), "0 genuine scores"),
        (lambda: histogram_figure({"a": ([np.nan], [np.nan])}), "no finite score"),
        (lambda: log_density_figure([1.0], [0, 1], ["a"]), "one of each per face"),
        (lambda: log_density_figure([np.nan], [0], ["a"]), "no face"),
        (lambda: log_density_figure([1.0], [1], ["a"]), "a name for each"),
        (lambda: training_figure([{"step": 1}]), "none with a step and a loss"),
    ],
)
def test_nothing_to_draw_is_the_users_mistake(draw, message):
    with pytest.raises(UserError, match=message):
        draw()


def test_a_det_of_separated_scores_says_that_it_is_empty():
    from matplotlib.figure import Figure

    from ida_jax.report.rate_plots import draw_det

    for rates, empty in ((([0.0, 0.0, 1.0], [0.5, 1.0, 1.0]), True), (([0.1], [0.9]), False)):
        axis = Figure().subplots()
        draw_det(axis, {"S": (rates, {})})
        said = [text.get_text() for text in axis.texts]
        assert any("nothing can be drawn" in text for text in said) == empty
