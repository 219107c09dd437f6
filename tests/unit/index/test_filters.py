"""The filter grammar: what it chooses equals a reading of it in plain Python, and nothing else ever comes of it."""

import datetime as dt
import random
import time
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cirray.core.errors import DataError
from cirray.index.columns import plain
from cirray.index.filters import MAX_LENGTH, mask_of, parse_filter

TABLE = plain(
    pa.table(
        {
            "price": [10.0, 49.5, 50.0, None, 99.0],
            "stock": pa.array([0, 7, None, 3, 2**53 + 1], pa.int64()),
            "category": ["shoes", "bags", "Red hats", None, 'o\'neil "x"'],
            "sold": [True, False, None, False, True],
            "date": [dt.date(2024, 12, 31), dt.date(2025, 1, 1), None, dt.date(2025, 6, 1), dt.date(1969, 1, 1)],
            "seen": [dt.datetime(2025, 1, 1, 12), None, dt.datetime(2025, 1, 1), dt.datetime(2024, 1, 1), None],
            "the odd one": ["a", "b", "c", "d", "e"],
            "tags": [["a"], [], None, ["b"], ["c"]],
        }
    )
)


def chosen(text, table=TABLE):
    return [row for row, passes in enumerate(mask_of(parse_filter(text, table.schema), table)) if passes]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("price < 50", [0, 1]),
        ("price <= 50 and price > 10", [1, 2]),
        ("price != 50", [0, 1, 4]),
        ("not price < 50", [2, 4]),
        ("stock = 9007199254740993", [4]),
        ("stock = 9007199254740992", []),
        ("stock < 6.5", [0, 3]),
        ("stock in [7, 3.0, 2.5]", [1, 3]),
        ("stock < 1e300", [0, 1, 3, 4]),
        ("category in [\"shoes\", 'bags']", [0, 1]),
        ("category not in ('shoes')", [1, 2, 4]),
        ('category contains "RED"', [2]),
        ("category starts with 'RED' or category starts with 'sh'", [0, 2]),
        ("category not contains 's'", [4]),
        ("category = 'o''neil \"x\"'", [4]),
        ('category = "o\'neil ""x"""', [4]),
        ("category is null", [3]),
        ("category is not null", [0, 1, 2, 4]),
        ("not (sold is null)", [0, 1, 3, 4]),
        ("sold", [0, 4]),
        ("not sold", [1, 3]),
        ("sold = FALSE AND NOT price IS NULL", [1]),
        ("date >= 2025-01-01", [1, 3]),
        ("date < '2025-01-01'", [0, 4]),
        ("date in [2025-01-01, 2024-12-31]", [0, 1]),
        ("date < 2025-01-01T00:00:01", [0, 1, 4]),
        ("seen >= 2025-01-01", [0, 2]),
        ("seen = 2025-01-01T13:00+01:00", [0]),
        ("`the odd one` = 'c'", [2]),
        ("price < 20 or price > 60 and sold", [0, 4]),
        ("(price < 20 or price > 60) and not sold", []),
        ("tags is null", [2]),
    ],
)
def test_a_filter_chooses_the_rows_that_it_says(text, rows):
    assert chosen(text) == rows


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The filter is empty"),
        ("  ", "The filter is empty"),
        ("prise < 50", "Unknown column 'prise'. Did you mean 'price'? Known: "),
        ("price < 'cheap'", "The column 'price' holds numbers, and 'cheap' is something else"),
        ("price = true", "The column 'price' holds numbers, and true is something else"),
        ("category = 5", "The column 'category' holds texts, and 5 is something else"),
        ("price contains 'a'", "The column 'price' holds numbers; 'contains' is for texts"),
        ("sold < true", "'sold' holds true or false, which '<' cannot order"),
        ("date > 5", "The column 'date' holds dates, and 5 is something else"),
        ("date > 2025-02-30", "'2025-02-30' is no date; write it as 2025-01-31"),
        ("date > 'soon'", "'soon' is no date"),
        ("tags = 'a'", "The column 'tags' holds list<"),
        ("price", "The column 'price' holds numbers; say what it is compared with"),
        ("price <", "The filter ends where a value"),
        ("price < 50 and", "The filter ends where the name of a column is wanted"),
        ("(price < 50", "The filter ends where ')' is wanted"),
        ("price < 50)", "The filter has ')' at character 11, where 'and', 'or' or the end is wanted"),
        ("price between 1 and 2", "The filter has 'between' at character 7, where a test of the column 'price'"),
        ("price in 5", "The filter has '5' at character 10, where a list"),
        ("price in []", "The filter has ']' at character 11, where a value"),
        ("price is 5", "where 'null' is wanted"),
        ("category starts 'a'", "where 'with' is wanted"),
        ("category = 'a", "a quote that is not closed at character 12"),
        ("price < 1e999", "The number '1e999' is too large"),
        ("price < $50", "'$50' at character 9, which cannot be read"),
        ("price < 50; drop table x", "at character 11, which cannot be read"),
        ("price < 5\x000", r"at character 10, which cannot be read"),
        ("category = '\ud800'", "half of a surrogate pair"),
        ("(" * 33 + "sold" + ")" * 33, "nested more than 32 levels deep"),
        ("not " * 33 + "sold", "nested more than 32 levels deep"),
        ("sold or " * 2000 + "sold", "The filter has 16,004 characters; at most 8,192"),
    ],
)
def test_what_cannot_be_a_filter_is_told_in_one_sentence(text, sentence):
    with pytest.raises(DataError) as told:
        parse_filter(text, TABLE.schema)
    assert sentence in str(told.value)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_the_longest_filters_are_quick():
    for text in ("sold or " * 1000 + "sold", "price in [" + "1," * 4000 + "1]", "(" * 32 + "sold" + ")" * 32):
        begin = time.perf_counter()
        chosen(text)
        assert time.perf_counter() - begin < 1.0


NAMES = {"price": [10, 49.5, 50, 0.1], "stock": [0, 3, 7, 2.5], "category": ["shoes", "bags", "a'b"], "sold": [True]}


def leaves():
    def comparison(draw):
        name = draw(st.sampled_from(sorted(NAMES)))
        value = draw(st.sampled_from(NAMES[name]))
        sign = draw(st.sampled_from(["=", "!="] if name == "sold" else ["=", "!=", "<", "<=", ">", ">="]))
        said = str(value).lower() if not isinstance(value, str) else "'" + value.replace("'", "''") + "'"
        return draw(
            st.sampled_from(
                [
                    (f"{name} {sign} {said}", ("compare", name, sign, value)),
                    (f"{name} is null", ("null", name)),
                    (f"{name} in [{said}]", ("compare", name, "=", value)),
                ]
            )
        )

    return st.composite(comparison)()


def wider(inner):
    pair = st.tuples(inner, inner)
    return st.one_of(
        pair.map(lambda two: (f"({two[0][0]}) and {two[1][0]}", ("and", two[0][1], two[1][1]))
                 if " or " not in two[1][0] else (f"({two[0][0]}) and ({two[1][0]})", ("and", two[0][1], two[1][1]))),
        pair.map(lambda two: (f"{two[0][0]} or ({two[1][0]})", ("or", two[0][1], two[1][1]))),
        inner.map(lambda one: (f"not ({one[0]})", ("not", one[1]))),
    )  # fmt: skip


def naive(node, row):
    """True, False or None, as SQL has it, from the row's Python values."""
    if node[0] == "null":
        return row[node[1]] is None
    if node[0] == "compare":
        _, name, sign, value = node
        if row[name] is None:
            return None
        left, right = (Decimal(row[name]), Decimal(value)) if isinstance(value, float) else (row[name], value)
        return {"=": left == right, "!=": left != right, "<": left < right, "<=": left <= right, ">": left > right,
                ">=": left >= right}[sign]  # fmt: skip
    values = [naive(part, row) for part in node[1:]]
    if node[0] == "not":
        return None if values[0] is None else not values[0]
    strong = node[0] == "or"
    return strong if strong in values else (None if None in values else not strong)


@settings(max_examples=120, deadline=None)
@given(st.recursive(leaves(), wider, max_leaves=12))
def test_any_filter_equals_its_reading_in_python(pair):
    text, node = pair
    rows = TABLE.select(list(NAMES)).to_pylist()
    assert chosen(text) == [number for number, row in enumerate(rows) if naive(node, row) is True]


PIECES = [*TABLE.column_names, *"=<>()[],'\"`", "!=", "and", "or", "not", "in", "is", "null", "contains", "starts with",
          "1", "-1.5e3", "2025-01-01", "true", "'x'", "\x00", "\n", "é", "--", ";", "__class__", "{}", "%s", "\\",
          "__import__('os').system('true')", "1; DROP TABLE images", "' OR '1'='1", "/*", "\ud800", "NaN"]  # fmt: skip


@settings(max_examples=200, deadline=1000, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join), st.binary().map(repr))
)
@example("(" * 1_000_000)
@example("not " * 250_000)
@example("'" + "a''" * 333_333)
@example("9" * 1_000_000)
@example("price < " + "9" * 5000)
@example("category = '" + "\x00" * 1000 + "'")
@example("category contains '" + "İ" * 2000 + "'")
@example("price < 5 " + " " * 8000 + "x")
def test_any_text_is_a_filter_or_one_clear_sentence(text):
    try:
        found = parse_filter(text, TABLE.schema)
    except DataError as error:
        assert str(error)
    else:
        assert len(text) <= MAX_LENGTH and len(mask_of(found, TABLE)) == len(TABLE)


def test_the_time_of_a_filter_grows_with_its_length_alone():
    rng = random.Random(0)
    for _ in range(30):
        text = "".join(rng.choice(["'", '"', "a", " ", "''", "1", "(", "e", "-", "."]) for _ in range(4000))
        begin = time.perf_counter()
        with pytest.raises(DataError):
            parse_filter(text, TABLE.schema)
        assert time.perf_counter() - begin < 0.5


def test_columns_of_odd_types_are_read_as_the_types_that_filters_know():
    table = plain(
        pa.table(
            {
                "dictionary": pa.array(["x", "y"]).dictionary_encode(),
                "large": pa.array(["x", "y"], pa.large_string()),
                "unsigned": pa.array([1, 2**64 - 1], pa.uint64()),
                "half": pa.array([0.5, float("nan")], pa.float32()),
                "decimal": pa.array([Decimal("19.99"), None], pa.decimal128(9, 2)),
                "zoned": pa.array([dt.datetime(2025, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))] * 2,
                                  pa.timestamp("ns", "Europe/Berlin")),
                "nothing": pa.nulls(2),
            }
        )
    )  # fmt: skip
    for text, rows in [
        ("dictionary = 'x'", [0]), ("large contains 'Y'", [1]), ("unsigned > 5", [1]), ("half is null", [1]),
        ("decimal = 19.99", [0]), ("zoned < 2025-01-01", [0, 1]), ("nothing is null", [0, 1]), ("nothing = 'x'", []),
    ]:  # fmt: skip
        assert chosen(text, table) == rows
