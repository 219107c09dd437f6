from cirray.evaluation.metrics import spread
from cirray.evaluation.tables import percent, text_table


def test_percent_rounds_to_one_decimal():
    assert percent(0.12345) == "12.3" and percent(spread([0.5, 0.6])) == "55.0 ± 7.1"


def test_names_with_brackets_are_text_not_markup():
    assert "[bold]x[/bold]" in text_table([["", "a"], ["[bold]x[/bold]", "1"]])


def test_a_table_is_text_in_a_notebook_too(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert text_table([["name", "a"], ["x", "1"]]).splitlines()[0].split() == ["name", "a"]
