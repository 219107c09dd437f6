import pytest

from cirray.evaluation.study import StudyContent, StudyRow, judge_claim, render_study, study_page


def row(name, *r1, **fields):
    return StudyRow(name, {"R@1": r1, "R@5": r1, "R@10": r1}, **fields)


OLD, OLDER, NEW = row("old", 0.40, 0.42, 0.41), row("older", 0.3, 0.5, 0.1), row("new", 0.45, 0.46, 0.42)


@pytest.mark.parametrize(
    ("points", "relative", "word"),
    [
        (0.0, 0.0, "confirmed"),
        (-0.5, 0.0, "confirmed"),
        (2.0, 0.0, "not settled"),
        (9.0, 0.0, "refuted"),
        (0.0, 0.2, "refuted"),
    ],
)
def test_a_claim_is_judged_seed_by_seed_against_the_best_of_the_others(points, relative, word):
    verdict = judge_claim("new wins", NEW, [OLDER, OLD], "R@1", points, relative)
    assert verdict.over == "old" and verdict.word == word
    assert verdict.differences == pytest.approx((0.05, 0.04, 0.01))


def test_one_seed_settles_nothing():
    assert judge_claim("new wins", row("new", 0.9), [row("old", 0.1)], "R@1").word == "one seed"


def test_table_and_page_say_the_same_and_escape_names():
    rows = (
        OLD,
        row("<new>", 0.5, 0.6, 0.7, labels=2000, seconds=(10.0, 20.0, 30.0), texts=(0.9, 0.9, 0.9), source="A & B"),
    )
    verdict = judge_claim("new wins", rows[1], [OLD], "R@1")
    content = StudyContent("Methods", rows, "P", (0, 1, 2), (verdict,), links={"seed 0": "../seed-0/report.html"})
    text, page = render_study(content), study_page(content)
    assert "60.0 ± 10.0" in text and "60.0 <small>± 10.0</small>" in page
    assert "2,000" in text and "90.0" in text and "CONFIRMED" in text and "+19.0 ± 9.5 points of R@1 over 'old'" in text
    assert (
        "&lt;new&gt;" in page and "<new>" not in page and "A &amp; B" in page and 'href="../seed-0/report.html"' in page
    )


def test_equal_figures_are_no_difference_and_not_a_refutation():
    assert judge_claim("new wins", NEW, [row("same", 0.45, 0.46, 0.42)], "R@1").word == "no difference"


def test_a_tolerance_below_zero_allows_a_row_to_be_a_little_worse():
    close = row("close", 0.398, 0.418, 0.409)
    assert judge_claim("as good", close, [OLD], "R@1", -0.5).word == "confirmed"
    assert judge_claim("as good", close, [OLD], "R@1", -0.1).word == "refuted"
