"""NodeConfigs of a NodeConfigTemplate: upstream writes its fields in Go's template language.

What is spoken here is that part of it which makes sense in one line: values, literals, pipelines,
parentheses, and the functions of its library that work on text and whole numbers. A field that cannot be
rendered stays as written, as upstream has it; here the fault is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from berthmaster.api import names
from berthmaster.api.power import (
    EndpointTerm,
    NodeConfig,
    NodeConfigTemplate,
    NodeConfigTerms,
    PowerNode,
)

_UNDEFINED_HOST = "undefined.example.com"
_UNDEFINED_ADDRESS = "x.x.x.x"
_LONGEST_RESULT = 4096
_DEEPEST = 20
_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"\s*(?:(?P<text>\"(?:\\.|[^\"\\\n])*\"|`[^`]*`)|(?P<number>[+-]?[0-9]+)(?![\w.])"
    r"|(?P<field>(?:\.[A-Za-z]\w*)+)|(?P<name>[A-Za-z]\w*)|(?P<mark>[|()]))"
)
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}

Value = str | int | bool
Function = Callable[..., Value]


class TemplateError(ValueError):
    """A field cannot be rendered; the message says where it went wrong."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


def render_template(
    template: NodeConfigTemplate, nodes: Sequence[PowerNode]
) -> tuple[tuple[NodeConfig, ...], tuple[str, ...]]:
    """Return a NodeConfig for each node that the template selects, and what cannot be rendered."""
    made: list[NodeConfig] = []
    problems = list(template.problems)
    for node in nodes:
        if template.selector is None or not template.selector.matches(node.labels):
            continue
        terms, faults = render_terms(template.terms, node)
        problems += [fault for fault in faults if fault not in problems]
        made.append(
            NodeConfig(
                namespace=template.namespace,
                name=f"{template.name}-{node.name}",
                node_name=node.name,
                api_version=template.api_version,
                created=template.created,
                terms=terms,
            )
        )
    return tuple(made), tuple(problems)


def render_terms(
    terms: NodeConfigTerms, node: PowerNode
) -> tuple[NodeConfigTerms, tuple[str, ...]]:
    """Return the terms for a node, each field by itself, and the faults."""
    values = _values_of(node)
    faults: list[str] = []

    def rendered(term: EndpointTerm, at: str) -> EndpointTerm:
        fields = {"type": term.type, "endpoint": term.endpoint}
        if term.secret is not None:
            fields["secret"] = term.secret
        for key, text in fields.items():
            try:
                fields[key] = render(text, values)
            except TemplateError as error:
                faults.append(f'{at}.{key}: "{text:.200}": {error}; it stays as written')
        return replace(term, **fields)

    return (
        NodeConfigTerms(
            inlet_temp=rendered(terms.inlet_temp, "inletTemp"),
            delta_p=rendered(terms.delta_p, "deltaP"),
            power=rendered(terms.power, "powerConsumption") if terms.power else None,
            provider=rendered(terms.provider, "powerConsumptionEndpointProvider")
            if terms.provider
            else None,
        ),
        tuple(faults),
    )


def render(text: str, values: Mapping[str, Value]) -> str:
    """Return the text with its actions replaced; `values` by path, such as `.IPv4.Octet3`.

    Raises:
        TemplateError: an action is faulty, or names what does not exist.
    """
    parts: list[str] = []
    end, trims = 0, False
    for match in _ACTION.finditer(text):
        before = text[end : match.start()]
        before = before.lstrip() if trims else before
        parts.append(before.rstrip() if match[1] else before)
        if not match[2].strip().startswith("/*"):
            parts.append(_shown(_Action(match[2], values).value()))
        end, trims = match.end(), bool(match[3])
    rest = text[end:]
    if "{{" in rest:
        raise TemplateError("an action is not closed")
    result = "".join([*parts, rest.lstrip() if trims else rest])
    if len(result) > _LONGEST_RESULT:
        raise TemplateError(f"the result is longer than {_LONGEST_RESULT} characters")
    return result


class _Action:
    """What stands between the braces, read from left to right."""

    def __init__(self, text: str, values: Mapping[str, Value]) -> None:
        self._tokens = list(_tokens(text))
        self._values = values
        self._at = 0
        self._depth = 0

    def value(self) -> Value:
        found = self._pipeline()
        if self._at < len(self._tokens):
            raise TemplateError(f'unexpected "{self._tokens[self._at].text}"')
        return found

    def _pipeline(self) -> Value:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise TemplateError("too many parentheses")
        found = self._command(())
        while self._take("|"):
            found = self._command((found,))
        self._depth -= 1
        return found

    def _command(self, piped: tuple[Value, ...]) -> Value:
        token = self._peek()
        if token is not None and token.kind == "name" and token.text not in ("true", "false"):
            self._at += 1
            arguments = list(self._operands())
            return _call(token.text, [*arguments, *piped])
        found = list(self._operands())
        if len(found) != 1 or piped:
            raise TemplateError("expected one value, or a function with its arguments")
        return found[0]

    def _operands(self) -> Iterator[Value]:
        while (token := self._peek()) is not None and token.text not in ("|", ")"):
            self._at += 1
            if token.text == "(" and token.kind == "mark":
                yield self._pipeline()
                if not self._take(")"):
                    raise TemplateError('")" is missing')
            elif token.kind == "field":
                if token.text not in self._values:
                    raise TemplateError(f"{token.text} does not exist")
                yield self._values[token.text]
            elif token.kind == "number":
                yield int(token.text)
            elif token.kind == "text":
                yield _literal(token.text)
            elif token.text in ("true", "false"):
                yield token.text == "true"
            else:
                yield _call(token.text, [])

    def _peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self, mark: str) -> bool:
        token = self._peek()
        if token is None or token.kind != "mark" or token.text != mark:
            return False
        self._at += 1
        return True


def _tokens(text: str) -> Iterator[_Token]:
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise TemplateError(f'unexpected "{text[at:end].strip():.20}"')
        yield _Token(match.lastgroup, match[match.lastgroup])
        at = match.end()


def _literal(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    return re.sub(r"\\(.)", lambda it: _ESCAPES.get(it[1], it[0]), text[1:-1])


def _values_of(node: PowerNode) -> dict[str, Value]:
    address = node.address or _UNDEFINED_ADDRESS
    octets = address.split(".")
    if len(octets) != 4:
        octets = ["x"] * 4
    return {
        ".Hostname": node.labels.get(names.HOSTNAME_LABEL, _UNDEFINED_HOST),
        ".IPv4.Address": address,
        **{f".IPv4.Octet{index}": octet for index, octet in enumerate(octets, 1)},
    }


def _call(name: str, arguments: list[Value]) -> Value:
    function = _FUNCTIONS.get(name)
    if function is None:
        raise TemplateError(f'function "{name}" is not known')
    try:
        return function(*arguments)
    except (TypeError, ValueError, IndexError) as error:
        raise TemplateError(f"{name}: wrong arguments ({error})") from error
    except ArithmeticError as error:
        raise TemplateError(f"{name}: {error}") from error


def _whole(value: Value) -> int:
    """Return a number as the library casts it: text that is none counts 0."""
    if isinstance(value, str):
        return int(value) if _INTEGER.fullmatch(value) else 0
    return int(value)


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _divided(left: int, right: int) -> int:
    """Divide as Go does, toward zero."""
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _product(*values: Value) -> int:
    product = 1
    for value in values:
        product *= _whole(value)
    return product


def _substr(start: Value, end: Value, text: Value) -> str:
    shown, first, last = _shown(text), _whole(start), _whole(end)
    if first < 0:
        return shown[:last]
    return shown[first:] if last < 0 or last > len(shown) else shown[first:last]


def _printf(form: Value, *values: Value) -> str:
    given = iter(values)

    def one(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        value = next(given)
        return match[0] % (_whole(value) if match[1] in "dxX" else _shown(value))

    text = re.sub(r"%0?[0-9]{0,2}([dsvxX%])", one, _shown(form).replace("%v", "%s"))
    if next(given, None) is not None:
        raise ValueError("too many")
    return text


def _text_function(function: Callable[..., str]) -> Function:
    return lambda *values: function(*map(_shown, values))


_FUNCTIONS: Mapping[str, Function] = {
    "add": lambda *values: sum(map(_whole, values)),
    "add1": lambda value: _whole(value) + 1,
    "sub": lambda left, right: _whole(left) - _whole(right),
    "mul": _product,
    "div": lambda left, right: _divided(_whole(left), _whole(right)),
    "mod": lambda left, right: _whole(left) - _whole(right) * _divided(_whole(left), _whole(right)),
    "max": lambda *values: max(map(_whole, values)),
    "min": lambda *values: min(map(_whole, values)),
    "int": _whole,
    "int64": _whole,
    "atoi": _whole,
    "toString": _shown,
    "print": lambda *values: "".join(map(_shown, values)),
    "printf": _printf,
    "quote": lambda *values: " ".join(f'"{_shown(it)}"' for it in values),
    "squote": lambda *values: " ".join(f"'{_shown(it)}'" for it in values),
    "lower": _text_function(lambda text: text.lower()),
    "upper": _text_function(lambda text: text.upper()),
    "title": _text_function(lambda text: text.title()),
    "trim": _text_function(lambda text: text.strip()),
    "nospace": _text_function(lambda text: "".join(text.split())),
    "trimAll": _text_function(lambda marks, text: text.strip(marks)),
    "trimPrefix": _text_function(lambda prefix, text: text.removeprefix(prefix)),
    "trimSuffix": _text_function(lambda suffix, text: text.removesuffix(suffix)),
    "replace": _text_function(lambda old, new, text: text.replace(old, new)),
    "cat": lambda *values: " ".join(map(_shown, values)),
    "substr": _substr,
    "trunc": lambda length, text: (
        _shown(text)[: _whole(length)] if _whole(length) >= 0 else _shown(text)[_whole(length) :]
    ),
    "default": lambda fallback, value="": value or fallback,
    "coalesce": lambda *values: next((it for it in values if it), ""),
    "ternary": lambda first, second, test: first if test else second,
    "contains": lambda part, text: _shown(part) in _shown(text),
    "hasPrefix": lambda prefix, text: _shown(text).startswith(_shown(prefix)),
    "hasSuffix": lambda suffix, text: _shown(text).endswith(_shown(suffix)),
    "empty": lambda value: not value,
    "not": lambda value: not value,
    "eq": lambda left, *others: left in others,
    "ne": lambda left, right: left != right,
}
