import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cirray.evaluation import plots


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def test_a_training_curve_draws_loss_and_terms_but_neither_rate_nor_norm():
    history = [{"step": n, "loss": 1 / n, "prototype": 0.5, "lr": 1.0, "grad_norm": 2.0} for n in range(1, 9)]
    drawn = lines(plots.training_curves("run", history))
    assert set(drawn) == {"loss", "prototype"}
    assert drawn["loss"].get_ydata()[1] == pytest.approx(0.5)


def test_a_term_that_is_the_whole_loss_is_drawn_once():
    history = [{"step": n, "loss": 1 / n, "contrastive": 1 / n} for n in range(1, 9)]
    assert set(lines(plots.training_curves("run", history))) == {"loss"}


def test_a_long_curve_is_smoothed_without_shift():
    steady = plots._smooth([3.0] * 100)
    ramp = plots._smooth(list(range(100)))
    assert np.allclose(steady, 3.0) and ramp[50] == 50


def test_recall_curves_rise_and_end_at_the_recall_of_the_last_k():
    figure = plots.recall_curves({"m": [np.array([0, 3, 80]), np.array([0, 0, 80])]}, up_to=10)
    values = lines(figure)["m"].get_ydata()
    assert values[0] == pytest.approx(50.0) and values[-1] == pytest.approx(200 / 3) and (np.diff(values) >= 0).all()


def test_a_sweep_has_one_panel_per_parameter_and_marks_the_best_finished_trial():
    trials = [{"a": 0.1, "b": 1, "R@1": 0.5}, {"a": 0.2, "b": 2, "R@1": 0.62}, {"a": 0.3, "b": 3, "R@1": None}]
    figure = plots.sweep_plot(trials, ("a", "b"))
    assert len(figure.axes) == 2
    dots, ring = figure.axes[0].collections
    assert len(dots.get_offsets()) == 2 and ring.get_offsets().tolist() == [[0.2, 62.0]]


def test_a_sweep_without_a_finished_trial_is_an_empty_picture():
    assert plots.sweep_plot([{"a": 1, "R@1": None}], ("a",)).axes


def test_a_logarithmic_curve_shows_an_amount_of_zero_apart_from_the_others():
    figure = plots.data_size_curve({"x": [(0.0, 0.3, None), (0.1, 0.4, None), (10.0, 0.5, None)]})
    places = [figure.axes[0].transData.transform((amount, 0))[0] for amount in (0.0, 0.1, 10.0)]
    assert places[0] < places[1] < places[2] and places[1] - places[0] > 0.1 * (places[2] - places[0])


def test_the_data_size_curve_has_a_line_per_method(tmp_path):
    figure = plots.data_size_curve({"x": [(500, 0.3, 0.01), (1000, 0.4, None)], "y": [(500, 0.5, 0.0)]})
    assert figure.axes[0].get_legend_handles_labels()[1] == ["x", "y"]
    plots.save_figure(figure, tmp_path / "size.png")
    assert Image.open(io.BytesIO((tmp_path / "size.png").read_bytes())).format == "PNG"


def test_an_inline_figure_follows_the_page_and_is_the_same_every_time():
    history = [{"step": n, "loss": 1 / n} for n in range(1, 9)]
    first, second = (plots.inline_svg(plots.training_curves("a & b", history), "a & b") for _ in range(2))
    assert first == second and first.startswith("<svg") and first.endswith("</svg>")
    assert "currentColor" in first and "font-family" not in first and "http" not in first and "a &amp; b" in first


def test_importing_the_plots_loads_no_plotting_library():
    code = "import sys, cirray.evaluation.plots, cirray.evaluation.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_methods_stand_from_top_to_bottom_with_their_means():
    figure = plots.method_plot({"old": [0.4, 0.42], "new": [0.6]})
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["old", "new"] and axis.yaxis_inverted()
    assert [text.get_text() for text in axis.texts] == ["41.0", "60.0"]


def test_a_legend_of_many_models_stands_beside_the_curves(recwarn):
    for count, outside in ((3, False), (27, True)):
        figure = plots.recall_curves(
            {f"a rather long name of model {n}": [np.arange(60) % (n + 2)] for n in range(count)}
        )
        plots.inline_svg(figure, "curves")
        legend, axis = figure.axes[0].get_legend().get_window_extent(), figure.axes[0].get_window_extent()
        assert bool(legend.x0 >= axis.x1) is outside and axis.width > 100
    assert not [warning for warning in recwarn if "constrained_layout" in str(warning.message)]
