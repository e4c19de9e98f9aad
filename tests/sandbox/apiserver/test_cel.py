"""CEL expressions over JSON values."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.sandbox.apiserver.cel import CelSyntaxError, compile_rule
from orchestrator.sandbox.apiserver.cel_functions import CelError

pytestmark = pytest.mark.quick

SELF: dict[str, Any] = {
    "n": 3, "f": 1.5, "s": "abc", "list": ["a", "b"], "map": {"k": "v"}, "t": "2026-01-02T03:04:05Z", "namespace": "x",
    "a.b": 1, "q": "1536Mi", "items": [{"name": "a", "size": 1}, {"name": "b", "size": 2}], "none": None,
}  # fmt: skip

TRUE = [
    "self.n == 3 && self.n < 4 && self.n >= 3", "self.n + 1 == 4", "self.n * 2 - 1 == 5", "7 / 2 == 3", "-7 / 2 == -3",
    "7 % 3 == 1", "self.f > 1.0", "self.s + 'd' == 'abcd'", "self.s.size() == 3", "size(self.list) == 2",
    "self.s.matches('^a.c$')", "self.s.startsWith('a') && self.s.endsWith('c') && self.s.contains('b')",
    "'a' in self.list", "!('z' in self.list)", "'k' in self.map", "self.map['k'] == 'v'", "self.map.all(k, k == 'k')",
    "self.list.exists(x, x == 'a')", "self.list.exists_one(x, x == 'a')", "self.list.all(x, x.size() == 1)",
    "self.list.map(x, x + '!') == ['a!', 'b!']", "self.list.filter(x, x != 'a') == ['b']",
    "self.items.map(i, i.size).sum() == 3", "has(self.n) && !has(self.zz)", "!has(self.zz) || self.zz > 1",
    "self.zz > 1 || true", "!(self.zz > 1 && false)", "self.n == 3 ? true : false",
    "duration('1h30m') == duration('90m')",
    "duration('1h') > duration('59m')", "timestamp(self.t) < timestamp('2027-01-01T00:00:00Z')",
    "timestamp(self.t).getHours() == 3", "self.__namespace__ == 'x'", "self.a__dot__b == 1", "self.n != 'three'",
    "1 == 1.0", "type(self.n) == int", "string(self.n) == '3'", "int('42') == 42", "self.none == null",
    "quantity(self.q).isGreaterThan(quantity('1Gi'))", "isQuantity('1Gi') && !isQuantity('x')", "isURL('https://a/b')",
    "url('https://a:1/b').getHostname() == 'a'", "'%s-%d'.format(['a', 1]) == 'a-1'", "self.list.join(',') == 'a,b'",
    "self.list.isSorted()", "'a,b'.split(',').size() == 2", "self.s.lowerAscii().upperAscii() == 'ABC'",
    "self.s.substring(1) == 'bc'", "self.s.indexOf('c') == 2", "self.s.find('[bc]+') == 'bc'", "[3, 1, 2].max() == 3",
    "{'a': 1}.a == 1", "r'\\d' == '\\\\d'", "self.items[1].name == 'b'", "!(self.list == [])",
]  # fmt: skip


@pytest.mark.parametrize("text", TRUE)
def test_an_expression_holds(text: str) -> None:
    assert compile_rule(text)({"self": SELF}) is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("self.zz == 1", "no such key: zz"),
        ("self.n < 'a'", "no such overload"),
        ("self.n && true", "no such overload"),
        ("self.list[5] == 'a'", "index out of bounds: 5"),
        ("1 / 0 == 1", "division by zero"),
        ("duration('soon') > duration('1s')", "duration parse error"),
        ("self.zz > 1 || false", "no such key: zz"),
    ],
)
def test_an_expression_without_a_value_says_why(text: str, message: str) -> None:
    with pytest.raises(CelError, match=message):
        compile_rule(text)({"self": SELF})


@pytest.mark.parametrize("text", ["self.a &&& 1", "self.", "nope(self)", "self.nope()", "has(self)"])
def test_what_cannot_be_compiled_is_refused(text: str) -> None:
    with pytest.raises(CelSyntaxError):
        compile_rule(text)
