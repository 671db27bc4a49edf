r"""The derivation: batch normalization's gradients for symbolic batch size m, by SymPy.

One channel, values :math:`x_1 \dots x_m`, a loss L of which nothing is known but its gradient
:math:`g_i = \partial L / \partial y_i`, and :math:`\varepsilon > 0`. The forward pass is a graph
of four nodes, ``FORWARD``. Everything else is derived from it:

* ``backward(target)``: a gradient by the chain rule along the graph (the paper's equations);
* ``closed_form_steps()``: from these to the closed form, each step with its reason;
* ``jacobian()`` and ``eigenpairs()``: what the backward pass does to a gradient;
* ``rescaled(...)``: any of these for a scaled input;
* ``expected_over_upstream(...)``: any of these on average over a random upstream;
* ``second_order_loss()`` and ``double_backward()``: the backward pass, differentiated again;
* ``oracle(...)``: the derived formulas as numbers, in float64 or at any precision.

``is_zero`` is the judge. It writes an expression in terms of the data x and g alone and reduces
it to a rational function of power sums such as :math:`\sum_k x_k^2`, whose numerator must vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import mpmath
import sympy as sp

from bnkit.sums import EPSILON, collapse, i, j, k, l, latex, latex_terms, m, power_sums, total

x, y, g, w, u = (sp.IndexedBase(name) for name in ("x", "y", "g", "w", "u"))
x_hat = sp.IndexedBase(r"\hat{x}")
mean, beta, a, b = sp.symbols("mu beta a b", real=True)
gamma = sp.Symbol("gamma", real=True, nonzero=True)
variance = sp.Symbol("v", nonnegative=True)
s = sp.Symbol("s", positive=True)
epsilon = EPSILON

LONGEST_LINE = 260  # characters of LaTeX that fit on a line of a page


class dL(sp.Function):  # type: ignore[misc]  # SymPy is not typed
    r"""The gradient of the loss with respect to the argument, not evaluated.

    >>> sp.latex(dL(x_hat[i]))
    '\\frac{\\partial L}{\\partial {\\hat{x}}_{i}}'
    """

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        fraction = rf"\frac{{\partial L}}{{\partial {printer._print(self.args[0])}}}"
        return fraction if exp is None else rf"\left({fraction}\right)^{{{exp}}}"


@dataclass(frozen=True)
class Equation:
    r"""A quantity and its value; a notebook shows it as a formula.

    >>> Equation(y[i], gamma * x_hat[i] + beta)
    Equation(left=y[i], right=beta + gamma*\hat{x}[i])
    """

    left: sp.Expr
    right: sp.Expr

    def _repr_latex_(self) -> str:
        left, right = latex(self.left), latex(self.right)
        if len(right) < LONGEST_LINE:
            return f"$${left} = {right}$$"
        lines = r" \\ & ".join(latex_terms(self.right))
        return rf"$$\begin{{aligned}} {left} = {{}} & {lines} \end{{aligned}}$$"


def partial(quantity: sp.Expr, by: sp.Expr) -> sp.Symbol:
    r"""Name of a derivative, to stand on the left side of an ``Equation``.

    >>> sp.latex(partial(variance, x[j]))
    '\\frac{\\partial v}{\\partial {x}_{j}}'
    """
    return sp.Symbol(rf"\frac{{\partial {latex(quantity)}}}{{\partial {latex(by)}}}")


@dataclass(frozen=True)
class Step:
    """One step of a derivation: what is done, why it is allowed, and what then stands."""

    name: str
    reason: str
    equation: Equation


FORWARD = (
    Equation(mean, total(x[k]) / m),
    Equation(variance, total((x[k] - mean) ** 2) / m),
    Equation(x_hat[i], (x[i] - mean) / sp.sqrt(variance + epsilon)),
    Equation(y[i], gamma * x_hat[i] + beta),
)
"""The forward pass, each node in terms of those before it: Algorithm 1 of the paper."""


# -- The chain rule along the graph --------------------------------------------------------


def local_derivative(node: Equation, target: sp.Expr) -> sp.Expr:
    r"""Derivative of one node by something that its formula names, all else held fixed.

    A node or a target with an index stands for all its entries; ask for different indices, as
    in :math:`\partial \hat x_i / \partial x_j`, and a Kronecker delta tells them apart.

    Args:
        node: an equation of ``FORWARD``.
        target: a symbol or an indexed entry such as ``x[j]``.

    Returns:
        The derivative, with sums over deltas carried out.

    >>> local_derivative(FORWARD[1], x[j])
    2*(-mu + x[j])/m
    """
    return collapse(sp.diff(node.right, target))


def backward(target: sp.Expr) -> Equation:
    r"""Gradient of the loss with respect to a target, by the chain rule along ``FORWARD``.

    .. math:: \frac{\partial L}{\partial t} = \sum_{n} \frac{\partial L}{\partial n}
        \frac{\partial n}{\partial t}

    over the nodes n whose formula names t, and over all entries of those that carry an index.

    Args:
        target: ``x_hat[i]``, ``variance``, ``mean``, ``x[i]``, ``gamma`` or ``beta``.

    Returns:
        The equation; its right side still names the gradients of later nodes.

    Source:
        Ioffe and Szegedy (2015), section 3: the six equations come out of this function.

    >>> backward(gamma)
    Equation(left=dL(gamma), right=Sum(dL(y[k])*\hat{x}[k], (k, 1, m)))
    """
    gradient: sp.Expr = sp.S.Zero
    for node in FORWARD:
        if isinstance(node.left, sp.Indexed):
            entry = Equation(node.left.subs(i, k), node.right.subs(i, k))
            derivative = local_derivative(entry, target)
            if derivative != 0:
                gradient += collapse(total(dL(entry.left) * derivative))
        else:
            gradient += dL(node.left) * local_derivative(node, target)
    return Equation(dL(target), gradient)


def paper_equations() -> tuple[Equation, ...]:
    """The six gradients of the paper, in its order, each derived by ``backward``.

    >>> len(paper_equations())
    6
    """
    return tuple(backward(target) for target in (x_hat[i], variance, mean, x[i], gamma, beta))


# -- From there to the closed form ---------------------------------------------------------


def closed_form_steps() -> tuple[Step, ...]:
    r"""From the paper's equation for :math:`\partial L / \partial x_i` to the closed form.

    .. math:: \frac{\partial L}{\partial x_i} = \frac{\gamma}{s} \left(g_i
        - \frac1m \sum_k g_k - \frac{\hat x_i}{m} \sum_k g_k \hat x_k\right)

    Returns:
        The steps in order. Each one's right side equals the one before, which
        ``is_zero(before - after)`` confirms.

    >>> steps = closed_form_steps()
    >>> all(is_zero(a.equation.right - b.equation.right) for a, b in zip(steps, steps[1:]))
    True
    """
    chain = backward(x[i])
    inserted = collapse(insert_gradients(chain.right))
    centred = inserted.subs(total(x[k] - mean), 0)
    standardized = _standardize(centred)
    linear = power_sums(standardized)
    factored = gamma / s * sp.expand(linear * s / gamma)
    stages = (
        ("Chain rule", "x reaches the loss by three ways: x̂, v and μ", chain.right),
        ("Insert", "the gradients of x̂, v and μ, and g for that of y", inserted),
        ("Centre", "deviations from the mean sum to zero", centred),
        ("Standardize", "write s² = v + ε and x − μ = s x̂", standardized),
        ("Take out", "what does not carry the index k leaves the sum", linear),
        ("Factor", "γ/s is common to all three terms", factored),
    )
    return tuple(Step(name, why, Equation(dL(x[i]), value)) for name, why, value in stages)


def closed_form() -> sp.Expr:
    """The gradient of the loss with respect to x[i], where ``closed_form_steps`` ends.

    >>> sp.count_ops(closed_form()) < sp.count_ops(insert_gradients(backward(x[i]).right))
    True
    """
    return closed_form_steps()[-1].equation.right


def direct_derivative() -> sp.Expr:
    r"""The same gradient without graph or steps: differentiate the whole formula at once.

    The loss enters by its linear part, :math:`\sum_l g_l y_l` with g held fixed, which has the
    gradient g by construction; y is written in terms of x alone before SymPy differentiates it.

    >>> is_zero(direct_derivative() - closed_form())
    True
    """
    return sp.diff(total(g[l] * in_data(y[l]), l), x[i])


def brute_force(size: int) -> list[sp.Expr]:
    """Closed form minus derivative of the raw forward pass, for a concrete batch size.

    No sums, no deltas: ``size`` separate symbols, differentiated one by one.

    Args:
        size: the batch size, a small number; 3 and 4 show what 2 hides.

    Returns:
        One difference per entry of x, simplified; all zero when the closed form holds.

    >>> brute_force(3)
    [0, 0, 0]
    """
    xs = sp.symbols(f"x1:{size + 1}", real=True)
    gs = sp.symbols(f"g1:{size + 1}", real=True)
    mu = sum(xs) / sp.Integer(size)
    std = sp.sqrt(sum((value - mu) ** 2 for value in xs) / size + epsilon)
    hats = [(value - mu) / std for value in xs]
    loss = sum(up * (gamma * hat + beta) for up, hat in zip(gs, hats, strict=True))
    mean_g = sum(gs) / sp.Integer(size)
    mean_g_hat = sum(up * hat for up, hat in zip(gs, hats, strict=True)) / size
    return [
        sp.simplify(sp.diff(loss, value) - gamma / std * (up - mean_g - hat * mean_g_hat))
        for value, up, hat in zip(xs, gs, hats, strict=True)
    ]


# -- The Jacobian --------------------------------------------------------------------------


def jacobian() -> sp.Expr:
    r"""Entry :math:`J_{ij} = \partial y_i / \partial x_j` of the Jacobian of one channel.

    The closed form answers any upstream gradient; to the upstream gradient that is 1 at one
    place and 0 elsewhere it answers with a row of the Jacobian (which is symmetric).

    >>> is_zero(jacobian() - sp.diff(in_data(y[i]), x[j]))
    True
    """
    row = closed_form().replace(g, w).subs(i, j)
    unit = row.replace(
        lambda e: isinstance(e, sp.Indexed) and e.base == w,
        lambda e: sp.KroneckerDelta(i, e.indices[0]),
    )
    return gamma / s * sp.expand(power_sums(unit) * s / gamma)


@dataclass(frozen=True)
class Eigenpair:
    """An eigenvector of the Jacobian, as a formula for its entry i, and its eigenvalue."""

    name: str
    vector: sp.Expr
    value: sp.Expr
    multiplicity: sp.Expr


def eigenpairs() -> tuple[Eigenpair, ...]:
    r"""Eigenvectors of the Jacobian: the constant, x_hat, and all that is orthogonal to both.

    >>> all(is_eigenpair(pair) for pair in eigenpairs())
    True
    """
    return (
        Eigenpair("constant", sp.S.One, sp.S.Zero, sp.S.One),
        Eigenpair("normalized input", x_hat[i], gamma / s * epsilon / s**2, sp.S.One),
        Eigenpair("orthogonal to both", w[i], gamma / s, m - 2),
    )


def is_eigenpair(pair: Eigenpair) -> bool:
    r"""Whether :math:`\sum_j J_{ij} w_j = \lambda w_i` for every i.

    w stands for any vector with :math:`\sum_j w_j = 0` and :math:`\sum_j w_j \hat x_j = 0`.
    """
    product = power_sums(total(jacobian() * pair.vector.subs(i, j), j))
    orthogonal = {total(w[k]): 0, total(w[k] * x_hat[k]): 0}
    return is_zero(product.subs(orthogonal) - pair.value * pair.vector)


# -- A scaled input ------------------------------------------------------------------------


def rescaled(expression: sp.Expr, factor: sp.Expr, epsilon_factor: sp.Expr = sp.S.One) -> sp.Expr:
    r"""The same expression for the input :math:`a x` and, if wanted, another epsilon.

    Args:
        expression: in terms of the names of this module; it is written in data first.
        factor: a, by which every x is multiplied.
        epsilon_factor: by which epsilon is multiplied.

    Returns:
        The expression in terms of x, g, gamma, beta and epsilon; the upstream g stays the same.

    >>> a = sp.Symbol("a", positive=True)
    >>> is_zero(rescaled(mean, a) - a * mean), is_zero(rescaled(x_hat[i], a, a**2) - x_hat[i])
    (True, True)
    """
    scaled = in_data(expression).subs(epsilon, epsilon_factor * epsilon)
    return scaled.replace(lambda e: isinstance(e, sp.Indexed) and e.base == x, lambda e: factor * e)


# -- Expectations --------------------------------------------------------------------------


def expected_over_upstream(expression: sp.Expr, spread: sp.Expr) -> sp.Expr:
    r"""Expectation over a random upstream of an expression of second degree in g.

    The entries of g are independent with mean 0 and standard deviation ``spread``; x is fixed.
    Of a polynomial Q of second degree only the constant and the pure squares are left:

    .. math:: E[Q] = Q(0) + \frac{\text{spread}^2}{2} \sum_l \frac{\partial^2 Q}{\partial g_l^2}

    Args:
        expression: in terms of g and, as constants, of anything else in this module.
        spread: standard deviation of an entry of g.

    Returns:
        The expectation. The two sums over x_hat that are known,
        :math:`\sum_k \hat x_k = 0` and :math:`\sum_k \hat x_k^2 = m (1 - \varepsilon / s^2)`, are
        carried out.

    >>> expected_over_upstream(total(g[k]) ** 2, sp.Symbol("tau"))
    m*tau**2
    """
    expanded = power_sums(expression)
    zero = expanded.replace(
        lambda e: isinstance(e, sp.Indexed) and e.base == g, lambda e: sp.S.Zero
    )
    curvature = sp.diff(power_sums(sp.diff(expanded, g[l])), g[l])
    expectation = power_sums(zero) + spread**2 / 2 * power_sums(total(power_sums(curvature), l))
    known = {total(x_hat[k]): sp.S.Zero, total(x_hat[k] ** 2): m * (1 - epsilon / s**2)}
    return sp.expand(expectation.subs(known))


def expected_over_rows(expression: sp.Expr, location: sp.Expr, spread: sp.Expr) -> sp.Expr:
    r"""Expectation of an expression of second degree in x, for independent rows.

    Rows have mean ``location`` and standard deviation ``spread``, so that
    :math:`E[x_k x_l] = \text{location}^2 + \delta_{kl}\,\text{spread}^2`.

    Args:
        expression: in terms of x (and of mean and variance, which are written in x first).
        location: population mean.
        spread: population standard deviation.

    Returns:
        The expectation, simplified.

    >>> M, sigma = sp.symbols("M sigma", positive=True)
    >>> sp.factor(expected_over_rows(variance, M, sigma))
    sigma**2*(m - 1)/m
    """
    first, second = total(x[k]), total(x[k] ** 2)
    product = location**2 + sp.KroneckerDelta(k, l) * spread**2
    expectations = {
        first**2: power_sums(total(total(product, k), l)),
        second: power_sums(total(product.subs(l, k))),
        first: m * location,
    }
    return sp.simplify(power_sums(in_data(expression)).xreplace(expectations))


# -- The backward pass, differentiated again -------------------------------------------------


def second_order_loss() -> sp.Expr:
    r"""A number made of the gradients, :math:`\sum_i u_i\, dx_i + a\, d\gamma + b\, d\beta`.

    Whatever is computed from the gradients, its derivatives by them are some u, a and b. With
    these held fixed, this number has the same derivatives by g, x and gamma.

    >>> second_order_loss().free_symbols >= {a, b, gamma, s}
    True
    """
    dgamma, dbeta = (insert_gradients(backward(each).right) for each in (gamma, beta))
    return total(u[i] * closed_form(), i) + a * dgamma + b * dbeta


def double_backward() -> dict[sp.Expr, sp.Expr]:
    r"""Derivatives of ``second_order_loss`` by ``g[i]``, ``gamma`` and ``x[i]``, in closed form.

    With :math:`P` for the projection of the backward pass, :math:`dx = \frac{\gamma}{s} P g`:

    .. math::
        \frac{\partial}{\partial g_i} &= \frac{\gamma}{s} (P u)_i + a \hat x_i + b, \qquad
        \frac{\partial}{\partial \gamma} = \frac{1}{s} \sum_k u_k (P g)_k \\
        \frac{\partial}{\partial x_i} &= \frac{1}{s} (P h)_i
        - \frac{\gamma}{m s^2} \hat x_i \sum_k u_k (P g)_k \\
        h_i &= a g_i - \frac{\gamma}{m s} \left(u_i \sum_k g_k \hat x_k
        + g_i \sum_k u_k \hat x_k\right)

    >>> is_zero(sp.diff(second_order_loss(), gamma) - double_backward()[gamma])
    True
    """
    u_x_hat, g_x_hat = total(u[k] * x_hat[k]), total(g[k] * x_hat[k])
    u_p_g = total(u[k] * projected(g[k]))
    h = a * g[k] - gamma / (m * s) * (u[k] * g_x_hat + g[k] * u_x_hat)
    return {
        g[i]: gamma / s * projected(u[k]).subs(k, i) + a * x_hat[i] + b,
        gamma: u_p_g / s,
        x[i]: projected(h).subs(k, i) / s - gamma / (m * s**2) * x_hat[i] * u_p_g,
    }


def projected(entry: sp.Expr) -> sp.Expr:
    r"""Entry k of what the backward pass leaves of a vector, given by its entry k.

    .. math:: (P h)_k = h_k - \frac1m \sum_l h_l - \frac{\hat x_k}{m} \sum_l h_l \hat x_l

    >>> is_zero(closed_form() - gamma / s * projected(g[k]).subs(k, i))
    True
    """
    at_l = entry.subs(k, l)  # which leaves indices of sums alone
    return entry - total(at_l, l) / m - x_hat[k] / m * total(at_l * x_hat[l], l)


# -- The formulas as numbers ---------------------------------------------------------------


def oracle(
    x_values: Sequence[Any],
    g_values: Sequence[Any],
    gamma_value: Any = 1,
    beta_value: Any = 0,
    epsilon_value: Any = 0.001,
    *,
    digits: int | None = None,
) -> dict[str, list[Any]]:
    """Values of y, dx, dgamma and dbeta for one channel, from the symbolic formulas.

    Slow and literal: every sum is added up term by term, as printed.

    Args:
        x_values: m numbers.
        g_values: m numbers, the upstream gradient.
        gamma_value: scale.
        beta_value: shift.
        epsilon_value: added to the variance.
        digits: decimal digits of an mpmath computation; None for Python's floats.

    Returns:
        Lists of numbers named "y", "dx" (m entries each), "dgamma" and "dbeta" (one each).

    Raises:
        ValueError: x_values and g_values differ in length.

    >>> oracle([1.0, 2.0, 3.0], [0.0, 0.0, 1.0], epsilon_value=0.0)["dgamma"]
    [1.224744871391589]
    """
    if len(x_values) != len(g_values):
        raise ValueError(f"g_values must have length {len(x_values)}, got {len(g_values)}")
    modules, number = ("math", float) if digits is None else ("mpmath", mpmath.mpf)
    size = len(x_values)
    with mpmath.workdps(digits or mpmath.mp.dps):
        xs, gs = ([0, *map(number, values)] for values in (x_values, g_values))  # x[1] is first
        scalars = [number(value) for value in (gamma_value, beta_value, epsilon_value)]
        return {
            name: [function(xs, gs, *scalars, entry) for entry in range(1, size + 1)]
            if name in ("y", "dx")
            else [function(xs, gs, *scalars, 1)]
            for name, function in _oracle_functions(size, modules).items()
        }


@cache
def _oracle_functions(size: int, modules: str) -> dict[str, Callable[..., Any]]:
    formulas = {
        "y": y[i],
        "dx": closed_form(),
        "dgamma": backward(gamma).right,
        "dbeta": backward(beta).right,
    }
    # m is replaced before lambdify: as an argument it would turn 1/m into a float.
    return {
        name: sp.lambdify(
            (x, g, gamma, beta, epsilon, i), in_data(formula).subs(m, size), modules=modules
        )
        for name, formula in formulas.items()
    }


# -- The judge -----------------------------------------------------------------------------


def insert_gradients(expression: sp.Expr) -> sp.Expr:
    """Replace each gradient by its value, back to the upstream gradient g.

    >>> insert_gradients(dL(x_hat[j]))
    gamma*g[j]
    """
    for node in (mean, variance, x_hat[i]):
        expression = _substitute(expression, Equation(dL(node), backward(node).right))
    return _substitute(expression, Equation(dL(y[i]), g[i]))


def in_data(expression: sp.Expr) -> sp.Expr:
    """Write an expression in terms of the data x and g and of gamma, beta, epsilon and m alone.

    >>> power_sums(in_data(x_hat[i] * s))
    x[i] - Sum(x[k], (k, 1, m))/m
    """
    expression = insert_gradients(expression).subs(s, sp.sqrt(variance + epsilon))
    for node in reversed(FORWARD):
        expression = _substitute(expression, node)
    return expression


def is_zero(expression: sp.Expr) -> bool:
    """Whether an expression vanishes for every batch size, all data and every epsilon > 0.

    >>> is_zero(total(x[k] - mean)), is_zero(total(x_hat[k] ** 2) - m)
    (True, False)
    """
    reduced = power_sums(in_data(expression))
    sums = sorted(reduced.atoms(sp.Sum), key=sp.default_sort_key)
    reduced = reduced.subs({each: sp.Dummy(real=True) for each in sums})
    # A square that is common to all terms under a root leaves it: sqrt(a**2 v) is a sqrt(v).
    reduced = reduced.replace(
        lambda e: isinstance(e, sp.Pow) and not e.exp.is_Integer,
        lambda e: sp.factor_terms(e.base) ** e.exp,
    )
    # The roots in play, such as sqrt(v + epsilon), become symbols; the rest is rational.
    roots = {e for e in reduced.atoms(sp.Pow) if not e.exp.is_Integer and not e.base.is_Number}
    for radicand in {e.base for e in roots}:
        degree = sp.ilcm(1, *(e.exp.q for e in roots if e.base == radicand))
        root = sp.Dummy(positive=True)
        reduced = reduced.replace(
            lambda e, base=radicand: isinstance(e, sp.Pow) and e.base == base,
            lambda e, root=root, degree=degree: root ** (degree * e.exp),
        )
        numerator = sp.fraction(sp.together(reduced))[0]
        reduced = sp.rem(sp.expand(numerator), root**degree - radicand, root)
    return bool(sp.simplify(reduced) == 0)


def _substitute(expression: sp.Expr, equation: Equation) -> sp.Expr:
    """Replace the left side, at whatever index it stands, by the right side."""
    left = equation.left
    entry = _entry(left)
    if not isinstance(entry, sp.Indexed):
        return expression.replace(lambda e: e == left, lambda e: _fresh(equation.right))

    def matches(e: sp.Expr) -> bool:
        same_kind = isinstance(e, dL) == isinstance(left, dL)
        return same_kind and isinstance(_entry(e), sp.Indexed) and _entry(e).base == entry.base

    return expression.replace(
        matches, lambda e: _fresh(equation.right).subs(i, _entry(e).indices[0])
    )


def _entry(expression: sp.Expr) -> sp.Expr:
    """What a gradient is taken by; anything else is its own entry."""
    return expression.args[0] if isinstance(expression, dL) else expression


def _fresh(expression: sp.Expr) -> sp.Expr:
    """Give each sum an index of its own, so that it can stand inside another sum."""
    return expression.replace(
        lambda e: isinstance(e, sp.Sum), lambda e: e.xreplace({e.variables[0]: sp.Dummy("k")})
    )


def _standardize(expression: sp.Expr) -> sp.Expr:
    """Write deviations as s x_hat and v + epsilon as s squared."""
    deviations = expression.replace(
        lambda e: isinstance(e, sp.Indexed) and e.base == x,
        lambda e: mean + s * x_hat[e.indices[0]],
    )
    return deviations.subs(variance, s**2 - epsilon)
