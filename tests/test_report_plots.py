import numpy as np
import pytest

from ida_jax.errors import UserError
from ida_jax.protocols.roc import roc_curve, tar_at_far
from ida_jax.report.plots import histogram_figure, log_density_figure, roc_figure, training_figure


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(0.6, 0.1, 401), rng.normal(0, 0.1, 5003)
    return {
        "cosine": (genuine, impostor),
        "ida_r": (genuine - 2.4, impostor - 2.45),
        "another": (genuine.astype(np.float32), np.append(impostor, np.nan).astype(np.float32)),
    }


def test_roc_figure_draws_curves_and_gains(scores):
    curves = {method: roc_curve(*kinds) for method, kinds in scores.items()}
    left, right = roc_figure(curves).axes
    by_name = {line.get_label(): line for line in left.lines}
    assert list(by_name) == ["Cosine", "IDA-R", "another"]
    np.testing.assert_array_equal(by_name["IDA-R"].get_ydata(), curves["ida_r"].tar)
    gain = 100 * (curves["ida_r"].tar - curves["cosine"].tar)
    np.testing.assert_allclose(right.lines[1].get_ydata(), gain, atol=1e-9)
    np.testing.assert_allclose(right.lines[0].get_ydata(), 0, atol=1e-12)
    # Told apart by more than colour.
    for look in ("get_linestyle", "get_marker", "get_color"):
        assert len({getattr(line, look)() for line in left.lines[:2]}) == 2
    assert len(roc_figure({"ida_r": curves["ida_r"]}).axes) == 1


@pytest.mark.parametrize("n", [1, 5, 50])
def test_roc_figure_of_few_impostors(n, tmp_path):
    curve = roc_curve([0.5, 2.0], np.arange(n) / n)
    figure = roc_figure({"cosine": curve, "ida_l": curve})
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
        (lambda: histogram_figure({}), "no scores"),
        (lambda: histogram_figure({"a": ([], [1.0])}), "0 genuine scores"),
        (lambda: histogram_figure({"a": ([np.nan], [np.nan])}), "no finite score"),
        (lambda: log_density_figure([1.0], [0, 1], ["a"]), "one of each a face"),
        (lambda: log_density_figure([np.nan], [0], ["a"]), "no face"),
        (lambda: log_density_figure([1.0], [1], ["a"]), "a name for each"),
        (lambda: training_figure([{"step": 1}]), "none with a step and a loss"),
    ],
)
def test_nothing_to_draw_is_the_users_mistake(draw, message):
    with pytest.raises(UserError, match=message):
        draw()
