"""Filters over metadata: a small grammar, checked against the columns, compiled to Arrow's own expressions.

    price < 50 and category in ["shoes", 'bags'] and not (sold is null) and date >= 2025-01-01 and title contains "red"

Comparisons are `= != < <= > >=`; further tests are `in [...]`, `is null`, `contains` and `starts with` (which ignore
case), each also with `not`; they are joined by `and`, `or`, `not` and brackets. A column that holds true or false is a
test by itself. Names with other characters than letters, digits, `_`, `.` and `-` stand in backquotes, texts in single
or double quotes, in which a doubled quote stands for one. A row whose value is null passes no test but `is null`, as in
SQL.

A filter is text that anyone may send. It is read by this parser alone, and what it becomes can only compare columns.
"""

import re
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.errors import DataError, unknown_name
from cirray.core.texts import is_whole
from cirray.index.columns import Value, compared, matched, read_date, read_number, truth, within

MAX_LENGTH = 8_192
"""Most characters of a filter."""
MAX_DEPTH = 32
"""Most brackets and `not`s inside one another."""
_SHOWN = 40
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2}
        (?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?(?![\w.-]))
    |(?P<number>[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,4})?(?![\w.]))
    |(?P<text>"(?:[^"]|"")*"|'(?:[^']|'')*')
    |(?P<name>`[^`]+`)
    |(?P<word>[^\W\d][\w.-]*)
    |(?P<sign><=|>=|!=|<>|==|[=<>()\[\],])
    )""",
    re.VERBOSE,
)
_COMPARISONS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_KEYWORDS = {"and", "or", "not", "in", "is", "null", "contains", "starts", "with", "true", "false"}
_TESTS = "=, !=, <, <=, >, >=, in [...], is null, contains, starts with"


class _Token(NamedTuple):
    kind: str
    text: str
    place: int

    @property
    def key(self) -> str:
        """The keyword or sign that it is; empty for names and values."""
        if self.kind == "word":
            return self.text.lower() if self.text.lower() in _KEYWORDS else ""
        return self.text if self.kind == "sign" else ""


class Filter(NamedTuple):
    """A filter that was read: its expression, which is true, false or null for a row, and the columns it needs."""

    expression: pc.Expression
    columns: frozenset[str]


def parse_filter(text: str, schema: pa.Schema) -> Filter:
    """A filter over the columns of a schema.

    Raises DataError for a filter that is too long or nested too deeply, that does not follow the grammar, that names an
    unknown column, or that compares a column with a value of another type.
    """
    if len(text) > MAX_LENGTH:
        raise DataError(f"The filter has {len(text):,} characters; at most {MAX_LENGTH:,} are accepted.")
    if not is_whole(text):
        raise DataError("The filter holds half of a surrogate pair, which is no text.")
    parser = _Parser(_tokens(text), schema)
    return Filter(parser.filter(), frozenset(parser.used))


def mask_of(chosen: Filter, table: pa.Table) -> np.ndarray:
    """Which rows of a table pass a filter, as a mask [N] (bool); null is no.

    Raises DataError when the columns' values cannot be compared so.
    """
    import pyarrow.dataset as ds  # which imports pandas; whoever asks a service needs neither

    try:
        found = ds.dataset(table).scanner(columns={"passes": chosen.expression}, use_threads=False).to_table()
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        raise DataError(f"The filter cannot be applied: {' '.join(str(error).split())[:160]}.") from None
    return pc.fill_null(found["passes"], False).to_numpy().astype(bool)


def _tokens(text: str) -> list[_Token]:
    tokens, place, end = [], 0, len(text.rstrip())
    while place < end:
        found = _TOKEN.match(text, place)
        if found is None:
            place += len(text[place:]) - len(text[place:].lstrip())
            what = "a quote that is not closed" if text[place] in "\"'`" else f"{text[place : place + 10]!r}"
            raise DataError(f"The filter has {what} at character {place + 1}, which cannot be read.")
        kind = str(found.lastgroup)
        tokens.append(_Token(kind, found[kind], found.start(kind)))
        place = found.end()
    return [*tokens, _Token("end", "", end)]


class _Parser:
    """Reads tokens from left to right; one method a level of the grammar."""

    def __init__(self, tokens: list[_Token], schema: pa.Schema) -> None:
        self._tokens, self._schema, self._at, self._depth = tokens, schema, 0, 0
        self.used: set[str] = set()

    def filter(self) -> pc.Expression:
        """The expression of all tokens."""
        if self._next.kind == "end":
            raise DataError("The filter is empty. Write a test, such as price < 50, or leave the filter out.")
        found = self._either()
        if self._next.kind != "end":
            self._fail("'and', 'or' or the end")
        return found

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _taken(self, *keys: str) -> str:
        """The key of the next token, which is passed, if it is one of some; else empty."""
        key = self._next.key
        if key not in keys:
            return ""
        self._at += 1
        return key

    def _need(self, key: str) -> None:
        if not self._taken(key):
            self._fail(f"{key!r}")

    def _fail(self, wanted: str) -> NoReturn:
        token = self._next
        if token.kind == "end":
            raise DataError(f"The filter ends where {wanted} is wanted.")
        raise DataError(
            f"The filter has {token.text[:_SHOWN]!r} at character {token.place + 1}, where {wanted} is wanted."
        )

    def _either(self) -> pc.Expression:
        return self._joined("or", self._both, lambda left, right: left | right)

    def _both(self) -> pc.Expression:
        return self._joined("and", self._not, lambda left, right: left & right)

    def _joined(
        self,
        word: str,
        part: Callable[[], pc.Expression],
        join: Callable[[pc.Expression, pc.Expression], pc.Expression],
    ) -> pc.Expression:
        """Parts with a word between them, joined as a tree of small depth."""
        parts = [part()]
        while self._taken(word):
            parts.append(part())
        while len(parts) > 1:
            parts = [reduce(join, parts[start : start + 2]) for start in range(0, len(parts), 2)]
        return parts[0]

    def _not(self) -> pc.Expression:
        opened = self._taken("not", "(")
        if not opened:
            return self._test()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise DataError(f"The filter is nested more than {MAX_DEPTH} levels deep; write it flatter.")
        found = ~self._not() if opened == "not" else self._either()
        if opened == "(":
            self._need(")")
        self._depth -= 1
        return found

    def _test(self) -> pc.Expression:
        column = self._column()
        if self._next.kind == "sign" and self._next.text in _COMPARISONS:
            self._at += 1
            return compared(column, _COMPARISONS[self._tokens[self._at - 1].text], self._value())
        if self._taken("is"):
            negated = self._taken("not")
            self._need("null")
            found = pc.field(column.name).is_null()
            return ~found if negated else found
        negated = self._taken("not")
        found = self._word_test(column, bool(negated))
        return ~found if negated else found

    def _word_test(self, column: pa.Field, needed: bool) -> pc.Expression:
        if self._taken("in"):
            return within(column, self._list())
        if self._taken("contains"):
            return matched(column, "contains", self._value())
        if self._taken("starts"):
            self._need("with")
            return matched(column, "starts with", self._value())
        if needed or self._next.key not in ("and", "or", ")") and self._next.kind != "end":
            self._fail(f"a test of the column {column.name!r} ({_TESTS})")
        return truth(column)

    def _column(self) -> pa.Field:
        token = self._next
        if token.kind not in ("word", "name") or token.key:
            self._fail("the name of a column")
        self._at += 1
        name = token.text.strip("`") if token.kind == "name" else token.text
        if name not in self._schema.names:
            raise DataError(unknown_name("column", name[:_SHOWN], self._schema.names))
        self.used.add(name)
        return self._schema.field(name)

    def _list(self) -> list[Value]:
        closing = {"[": "]", "(": ")"}.get(self._taken("[", "("))
        if closing is None:
            self._fail("a list in [ ]")
        values = [self._value()]
        while self._taken(","):
            values.append(self._value())
        self._need(closing)
        return values

    def _value(self) -> Value:
        token = self._next
        read = {
            "number": read_number, "date": read_date, "text": lambda text: text[1:-1].replace(text[0] * 2, text[0]),
        }.get(token.kind)  # fmt: skip
        if read is None and token.key not in ("true", "false"):
            self._fail("a value (a number, a date, true, false, or a text in quotes)")
        self._at += 1
        return token.key == "true" if read is None else read(token.text)
