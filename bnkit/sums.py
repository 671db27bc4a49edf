r"""Sums over a batch of symbolic size m, as SymPy objects: build, simplify and print them.

SymPy differentiates a sum over an indexed symbol into a sum over Kronecker deltas. What it
leaves to us is to carry such sums out (an index of the batch always lies in 1 … m), to bring two
sums to one form so that they can be compared, and to print them as mathematicians write them.
"""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy.concrete.delta import deltasummation
from sympy.printing.latex import LatexPrinter

m = sp.Symbol("m", integer=True, positive=True)
i, j, k, l = sp.symbols("i j k l", integer=True)  # noqa: E741 (the letters of the book)
EPSILON = sp.Symbol("epsilon", positive=True)


def total(summand: sp.Expr, index: sp.Symbol = k) -> sp.Expr:
    """Sum over the batch, the index running from 1 to m.

    >>> total(sp.IndexedBase("x")[k])
    Sum(x[k], (k, 1, m))
    """
    return sp.Sum(summand, (index, 1, m))


def collapse(expression: sp.Expr) -> sp.Expr:
    """Carry out sums over Kronecker deltas, and take constant factors out of other sums.

    >>> x, mu = sp.IndexedBase("x"), sp.Symbol("mu")
    >>> collapse(total(m * x[k] * sp.KroneckerDelta(j, k)))
    m*x[j]
    >>> collapse(total(2 * mu - 2 * x[k]))
    -2*Sum(-mu + x[k], (k, 1, m))
    """
    carried_out = expression.replace(lambda e: isinstance(e, sp.Sum), _collapse_sum)
    return carried_out if carried_out.has(sp.Sum) else sp.Mul(*_factors(carried_out))


def _collapse_sum(sum_: sp.Sum) -> sp.Expr:
    result = sum_.function
    for index in _indices(sum_):
        factors = _factors(result)
        constant = sp.Mul(*(factor for factor in factors if not factor.has(index)))
        varying = sp.Mul(*(factor for factor in factors if factor.has(index)))
        result = constant * _sum_of_product(varying, index)
    return result


def _indices(sum_: sp.Sum) -> list[sp.Symbol]:
    """Indices of a sum, the innermost first; each must run over the whole batch."""
    if any(limits[1:] != (1, m) for limits in sum_.limits):
        raise ValueError(f"a sum must run from 1 to m, got {sum_}")
    return list(sum_.variables)


def _factors(expression: sp.Expr) -> list[sp.Expr]:
    """Factors, each bracket turned so that entries of the batch are positive in it."""
    factors = sp.Mul.make_args(sp.factor(expression))
    turned = [-f if isinstance(f, sp.Add) and _has_negative_entry(f) else f for f in factors]
    sign = sp.Integer(-1) ** sum(a is not b for a, b in zip(factors, turned, strict=True))
    return [sign, *turned]


def _has_negative_entry(terms: sp.Add) -> bool:
    entries = [term for term in terms.args if term.has(sp.Indexed)]
    return bool(entries) and all(term.could_extract_minus_sign() for term in entries)


def power_sums(expression: sp.Expr) -> sp.Expr:
    """Normal form: every sum is over one product, constants outside, deltas carried out.

    >>> x, mu = sp.IndexedBase("x"), sp.Symbol("mu")
    >>> power_sums(total((x[k] - mu) ** 2))
    m*mu**2 - 2*mu*Sum(x[k], (k, 1, m)) + Sum(x[k]**2, (k, 1, m))
    """
    if isinstance(expression, sp.Sum):
        result = power_sums(expression.function)
        for index in _indices(expression):
            terms = sp.Add.make_args(sp.expand(result))
            result = sp.Add(*(_sum_of_product(term, index) for term in terms))
        return result
    if not expression.args or isinstance(expression, sp.Indexed):
        return expression
    rebuilt = expression.func(*(power_sums(argument) for argument in expression.args))
    if isinstance(rebuilt, sp.Pow):
        return sp.Pow(sp.expand(rebuilt.base), rebuilt.exp)
    return sp.expand(rebuilt) if isinstance(rebuilt, (sp.Add, sp.Mul)) else rebuilt


def _sum_of_product(product: sp.Expr, index: sp.Symbol) -> sp.Expr:
    """Sum of one product, with the factors that do not carry the index in front."""
    constant, varying = product.as_independent(index, as_Add=False)
    if varying == 1:
        return constant * m
    if varying.has(sp.KroneckerDelta):
        return constant * deltasummation(varying, (index, 1, m), no_piecewise=True)
    return constant * total(varying.subs(index, k))


def latex(expression: sp.Expr) -> str:
    r"""LaTeX as one would write it by hand: positive terms first, sums behind their factor.

    >>> x, mu = sp.IndexedBase("x"), sp.Symbol("mu")
    >>> latex(total(x[k] - mu) / m)
    '\\frac{1}{m} \\sum_{k=1}^{m} \\left({x}_{k} - \\mu\\right)'
    """
    return str(_printer().doprint(expression))


def latex_terms(expression: sp.Expr) -> list[str]:
    r"""LaTeX of each term with its sign, for a sum that is broken into lines.

    >>> latex_terms(m - 2 / m)
    ['m', '- \\frac{2}{m}']
    """
    printer = _printer()
    terms = [str(printer.doprint(term)) for term in printer._as_ordered_terms(expression)]
    return [terms[0], *(term if term.startswith("-") else f"+ {term}" for term in terms[1:])]


def _printer() -> _Printer:
    return _Printer({"symbol_names": {EPSILON: r"\varepsilon"}})


class _Printer(LatexPrinter):  # type: ignore[misc]  # SymPy is not typed
    def _as_ordered_terms(self, expr: sp.Expr, order: str | None = None) -> list[sp.Expr]:
        terms = super()._as_ordered_terms(expr, order=order)

        def rank(term: sp.Expr) -> tuple[bool, bool, bool, int]:
            length = 0 if term.has(sp.Function) else term.count_ops()
            return term.could_extract_minus_sign(), term.is_Symbol, term == EPSILON, length

        return sorted(terms, key=rank)

    def _print_Mul(self, expr: sp.Expr) -> str:
        sums = [factor for factor in expr.args if isinstance(factor, sp.Sum)]
        brackets = [factor for factor in expr.args if isinstance(factor, sp.Add)]
        gradients = [factor for factor in expr.args if isinstance(factor, sp.Function)]
        long = [*gradients, *brackets, *sums]
        rest = sp.Mul(*(factor for factor in expr.args if factor not in long))
        if not long or (long == brackets and _is_short(brackets)):
            return str(super()._print_Mul(expr))
        if len(expr.args) == len(long):
            return self._in_a_row(long)
        front = "- " if rest == -1 else self._print(rest) + " "
        return front + self._in_a_row(long)

    def _in_a_row(self, factors: list[sp.Expr]) -> str:
        """Factors side by side; all in brackets that would otherwise swallow their neighbour."""
        last = factors[-1]
        return " ".join(
            rf"\left({self._print(factor)}\right)"
            if isinstance(factor, sp.Add) or (isinstance(factor, sp.Sum) and factor is not last)
            else str(self._print(factor))
            for factor in factors
        )

    def _print_Indexed(self, expr: Any) -> str:
        return f"{{{self._print(expr.base)}}}_{{{self._print(expr.indices[0])}}}"


def _is_short(brackets: list[sp.Add]) -> bool:
    """Whether there is one bracket, of plain letters: it goes into the numerator of a fraction."""
    letters = [term.as_coeff_Mul()[1] for bracket in brackets for term in bracket.args]
    return len(brackets) == 1 and all(isinstance(e, (sp.Symbol, sp.Indexed)) for e in letters)
