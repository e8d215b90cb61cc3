"""Arithmetic over named numbers, as multi graders write it; knows nothing about graders. Nothing else of Python can be said in it."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

MAX_LENGTH, MAX_DEPTH = 2000, 200
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # floats only: a tower of integers would fill the memory
    ast.Mod: math.fmod,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil, "exp": math.exp, "sqrt": math.sqrt, "log": math.log,
}  # fmt: skip


class FormulaError(Exception):
    """A formula that cannot be read, or has no value for these numbers."""


class Formula:
    """`0.5 * a + max(b, c) ^ 2` and the like. `names` are what it may use. Raises FormulaError when it is none."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        if len(text) > MAX_LENGTH:
            raise FormulaError(f"the formula has {len(text)} characters; {MAX_LENGTH} are allowed")
        self.text, self._names = text, names
        self._source = text.strip().replace("^", "**")
        try:
            self._tree = ast.parse(self._source, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise FormulaError(f"the formula '{text[:200]}' does not parse") from error
        self._check(self._tree)

    def _check(self, node: ast.AST, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise FormulaError(f"the formula '{self.text[:200]}' is nested deeper than {MAX_DEPTH}")
        match node:
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                return
            case ast.Name(id=name) if name in self._names:
                return
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                self._check(left, depth + 1)
                self._check(right, depth + 1)
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
                self._check(operand, depth + 1)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS and args:
                for argument in args:
                    self._check(argument, depth + 1)
            case _:
                known = f"+ - * / % ^, {', '.join(_FUNCTIONS)}, and the names {', '.join(sorted(self._names))}"
                what = ast.get_source_segment(self._source, node) or type(node).__name__
                raise FormulaError(f"'{what[:200]}' cannot stand in the formula '{self.text[:200]}'; allowed: {known}")

    def __call__(self, values: Mapping[str, float]) -> float:
        """The value. Raises FormulaError when there is none (a division by 0, a logarithm of −1, an overflow)."""
        try:
            result = float(self._value(self._tree, values))
        except (ArithmeticError, ValueError, TypeError) as error:
            raise FormulaError(f"the formula '{self.text}' has no value here: {error}") from error
        if not math.isfinite(result):
            raise FormulaError(f"the formula '{self.text}' gives {result}")
        return result

    def _value(self, node: Any, values: Mapping[str, float]) -> float:
        match node:
            case ast.Constant(value=value):
                return float(value)  # type: ignore[arg-type]  # _check let only numbers through
            case ast.Name(id=name):
                return values[name]
            case ast.BinOp(left=left, op=op, right=right):
                return _BINARY[type(op)](self._value(left, values), self._value(right, values))
            case ast.UnaryOp(op=sign, operand=operand):
                return _UNARY[type(sign)](self._value(operand, values))
        return float(_FUNCTIONS[node.func.id](*(self._value(argument, values) for argument in node.args)))
