import re

import pytest

from cirray.core.errors import DataError
from cirray.evaluation.metrics import spread
from cirray.evaluation.tables import (
    Bar,
    StoryRow,
    accuracy_bar,
    gain_bar,
    kept_gain_bar,
    percent,
    render_story_table,
    text_table,
)


def row(name, *r1, **fields):
    return StoryRow(name, 2000, r1, r1, r1, tuple(range(len(r1))), **fields)


LABELS, TUNED, OURS, ORACLE = (
    row("labels", 0.40, 0.42),
    row("tuned", 0.5, 0.5),
    row("ours", 0.6, 0.62),
    row("true", 0.64),
)


def test_the_story_table_shows_mean_and_spread_in_percent_and_the_protocol():
    text = render_story_table([LABELS, row("ours", 0.6, 0.62, seconds=61.4, text_accuracy=(0.8, 0.82))], protocol="P")
    assert re.search(r"labels +2,000 +41\.0 ± 1\.4 +41\.0 ± 1\.4 +41\.0 ± 1\.4 +2$", text, re.M)
    assert re.search(r"ours .* 81\.0 ± 1\.4 +61 +2$", text, re.M)
    assert text.splitlines()[-1] == "Protocol: P."


def test_columns_that_no_row_fills_are_left_out():
    assert "seconds" not in render_story_table([LABELS]) and "texts exact" not in render_story_table([LABELS])


def test_one_seed_has_no_spread():
    assert "±" not in render_story_table([ORACLE]) and "64.0" in render_story_table([ORACLE])


def test_bars_say_met_or_missed_with_both_figures():
    text = render_story_table([OURS], [Bar("gain", 6.04, 6.0), Bar("accuracy", 0.7, 0.75, "share")])
    assert "MET    gain: +6.0 points (wanted: at least +6.0 points)" in text
    assert "MISSED accuracy: 0.70 (wanted: at least 0.75)" in text


def test_a_gain_is_measured_against_the_best_baseline_and_names_it():
    bar = gain_bar("beats labels", OURS, [LABELS, TUNED], 10)
    assert bar.measured == pytest.approx(11.0) and bar.met and "'tuned'" in bar.promise
    assert not gain_bar("beats labels", OURS, [LABELS, TUNED], 12).met


def test_the_kept_share_of_the_oracles_gain():
    bar = kept_gain_bar("keeps", OURS, ORACLE, [LABELS, TUNED], 0.8)
    assert bar.measured == pytest.approx(0.11 / 0.14) and not bar.met
    assert kept_gain_bar("keeps", OURS, LABELS, [TUNED], 0.8).measured == 1.0
    assert kept_gain_bar("keeps", LABELS, TUNED, [TUNED], 0.8).measured == 0.0


def test_accuracy_over_seeds_is_a_bar_too():
    assert accuracy_bar("texts", [0.74, 0.78], 0.75).met and not accuracy_bar("texts", [0.7], 0.75).met


def test_no_rows_no_baselines_and_uneven_seeds_are_errors():
    with pytest.raises(DataError, match="no rows"):
        render_story_table([])
    with pytest.raises(DataError, match="at least one baseline"):
        gain_bar("x", OURS, [], 1)
    with pytest.raises(DataError, match="'odd' has 1 seeds"):
        render_story_table([StoryRow("odd", 0, (0.1, 0.2), (0.1,), (0.1,))])


def test_percent_rounds_to_one_decimal():
    assert percent(0.12345) == "12.3" and percent(spread([0.5, 0.6])) == "55.0 ± 7.1"


def test_names_with_brackets_are_text_not_markup():
    assert "[bold]x[/bold]" in text_table([["", "a"], ["[bold]x[/bold]", "1"]])
