"""The derivation: that it proves what it says, and that its judge can say no."""

import mpmath
import numpy as np
import pytest
import sympy as sp

import bnkit
from bnkit import sums
from bnkit import symbolic as sym
from bnkit.symbolic import dL, epsilon, gamma, i, j, k, l, m, mean, s, variance, x, x_hat, y

RNG = np.random.default_rng(20150211)


# -- The paper's six equations, as printed there, against those derived from the graph -----

PAPER = {
    "x_hat": (x_hat[i], dL(y[i]) * gamma),
    "variance": (
        variance,
        sym.total(dL(x_hat[k]) * (x[k] - mean)) * (variance + epsilon) ** sp.Rational(-3, 2) / -2,
    ),
    "mean": (
        mean,
        -sym.total(dL(x_hat[k])) / sp.sqrt(variance + epsilon)
        + dL(variance) * sym.total(-2 * (x[k] - mean)) / m,
    ),
    "x": (
        x[i],
        dL(x_hat[i]) / sp.sqrt(variance + epsilon)
        + dL(variance) * 2 * (x[i] - mean) / m
        + dL(mean) / m,
    ),
    "gamma": (gamma, sym.total(dL(y[k]) * x_hat[k])),
    "beta": (sym.beta, sym.total(dL(y[k]))),
}


@pytest.mark.parametrize("name", PAPER)
def test_chain_rule_gives_the_equation_of_the_paper(name):
    """Equal as they stand, without inserting one into another."""
    target, published = PAPER[name]
    difference = sums.power_sums(sym.backward(target).right - published)
    assert sp.simplify(difference) == 0


def test_paper_equations_come_in_the_order_of_the_paper():
    derived = [equation.left for equation in sym.paper_equations()]
    assert derived == [dL(target) for target, _ in PAPER.values()]


# -- The closed form -----------------------------------------------------------------------

STATED = (
    gamma / s * (sym.g[i] - sym.total(sym.g[k]) / m - x_hat[i] / m * sym.total(sym.g[k] * x_hat[k]))
)


def test_steps_end_in_the_stated_closed_form():
    assert sp.expand(sym.closed_form() - STATED) == 0


@pytest.mark.parametrize("step", range(1, 6))
def test_each_step_leaves_the_gradient_unchanged(step):
    before, after = sym.closed_form_steps()[step - 1 : step + 1]
    assert before.equation.right != after.equation.right
    assert sym.is_zero(before.equation.right - after.equation.right)


def test_closed_form_equals_direct_differentiation_for_symbolic_batch_size():
    assert sym.is_zero(sym.direct_derivative() - sym.closed_form())


@pytest.mark.parametrize("size", [3, 4])
def test_closed_form_equals_brute_differentiation_for_concrete_batch_size(size):
    assert sym.brute_force(size) == [0] * size


def test_gradients_of_gamma_and_beta_equal_direct_differentiation():
    loss = sym.total(sym.g[l] * sym.in_data(y[l]), l)
    for parameter in (gamma, sym.beta):
        direct = sp.diff(loss, parameter)
        assert sym.is_zero(direct - sym.backward(parameter).right)


# -- The Jacobian --------------------------------------------------------------------------


def test_jacobian_equals_direct_differentiation_of_the_forward_pass():
    assert sym.is_zero(sym.jacobian() - sp.diff(sym.in_data(y[i]), x[j]))


def test_jacobian_is_symmetric():
    swapped = sym.jacobian().subs({i: j, j: i}, simultaneous=True)
    assert sp.expand(swapped - sym.jacobian()) == 0


@pytest.mark.parametrize("pair", sym.eigenpairs(), ids=lambda pair: pair.name)
def test_eigenpair_satisfies_its_equation(pair):
    assert sym.is_eigenpair(pair)


@pytest.mark.parametrize("pair", sym.eigenpairs(), ids=lambda pair: pair.name)
def test_wrong_eigenvalue_is_refused(pair):
    wrong = sym.Eigenpair(pair.name, pair.vector, pair.value + gamma / s / m, pair.multiplicity)
    assert not sym.is_eigenpair(wrong)


def test_multiplicities_of_eigenvalues_add_up_to_the_batch_size():
    assert sum(pair.multiplicity for pair in sym.eigenpairs()) == m


def test_eigenvalues_are_those_of_the_numerical_jacobian():
    values = {m: 6, gamma: 1.7, epsilon: 0.01}
    data = RNG.normal(size=(6, 1))
    _, cache = bnkit.batch_norm_forward(data, [1.7], epsilon=0.01)
    rows = [bnkit.batch_norm_backward(unit[:, None], cache)[0][:, 0] for unit in np.eye(6)]
    values[s] = 1 / float(cache.inv_std[0])
    expected = sorted(
        float(pair.value.subs(values))
        for pair in sym.eigenpairs()
        for _ in range(int(pair.multiplicity.subs(values)))
    )
    np.testing.assert_allclose(np.linalg.eigvalsh(rows), expected, atol=1e-12)


# -- Expectations --------------------------------------------------------------------------


def test_expected_batch_variance_is_smaller_by_one_mth():
    location, spread = sp.symbols("M sigma", positive=True)
    expected = sym.expected_over_rows(variance, location, spread)
    assert sp.simplify(expected - (m - 1) / m * spread**2) == 0


def test_mean_square_gradient_of_a_random_upstream_counts_the_eigenvalues():
    """E|dx|^2 is the sum of the squared eigenvalues, for symbolic m and epsilon > 0."""
    tau = sp.Symbol("tau", positive=True)
    square = sym.total(sym.closed_form() ** 2, i)
    of_eigenvalues = sum(pair.multiplicity * pair.value**2 for pair in sym.eigenpairs())
    assert sp.simplify(sym.expected_over_upstream(square, tau) - tau**2 * of_eigenvalues) == 0


def test_expectation_over_upstream_drops_what_is_linear_and_keeps_what_is_constant():
    tau = sp.Symbol("tau", positive=True)
    assert sym.expected_over_upstream(3 * sym.g[i] + 2, tau) == 2


# -- A scaled input ------------------------------------------------------------------------

FACTOR = sp.Symbol("a", positive=True)


def test_scaling_input_and_epsilon_together_leaves_the_output():
    assert sym.is_zero(sym.rescaled(y[i], FACTOR, FACTOR**2) - y[i])


def test_scaling_the_input_alone_moves_the_output():
    assert not sym.is_zero(sym.rescaled(y[i], FACTOR) - y[i])


def test_negative_factor_flips_the_sign_of_the_normalized_input():
    assert sym.is_zero(sym.rescaled(x_hat[i], -FACTOR, FACTOR**2) + x_hat[i])


def test_gradient_shrinks_as_the_input_grows():
    scaled = sym.rescaled(sym.closed_form(), FACTOR, FACTOR**2)
    assert sym.is_zero(scaled - sym.closed_form() / FACTOR)
    assert not sym.is_zero(scaled - sym.closed_form() / FACTOR**2)


def test_radial_part_of_the_gradient_is_all_due_to_epsilon():
    radial = sym.total(x[i] * sym.closed_form(), i)
    dgamma = sym.insert_gradients(sym.backward(gamma).right)
    assert sym.is_zero(radial - gamma * epsilon / s**2 * dgamma)


# -- The oracle ----------------------------------------------------------------------------


def numpy_pass(data, upstream, scale, shift, eps):
    y_values, cache = bnkit.batch_norm_forward(data[:, None], [scale], [shift], epsilon=eps)
    dx, dgamma, dbeta = bnkit.batch_norm_backward(upstream[:, None], cache)
    return {"y": y_values[:, 0], "dx": dx[:, 0], "dgamma": dgamma, "dbeta": dbeta}


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("eps", [1e-5, 1e-3, 1.0])
def test_numpy_equals_the_oracle_in_float64(size, eps):
    data, upstream = RNG.normal(2.0, 3.0, size), RNG.normal(size=size)
    expected = sym.oracle(data, upstream, 1.3, -0.4, eps)
    for name, got in numpy_pass(data, upstream, 1.3, -0.4, eps).items():
        np.testing.assert_allclose(got, expected[name], rtol=1e-11, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_numpy_equals_the_oracle_at_fifty_digits(offset):
    """At a mean of 1e4 the oracle in floats would lose digits; NumPy's two passes do not."""
    data, upstream = offset + RNG.normal(size=5), RNG.normal(size=5)
    expected = sym.oracle(data, upstream, 1.3, -0.4, 1e-3, digits=50)
    for name, got in numpy_pass(data, upstream, 1.3, -0.4, 1e-3).items():
        exact = np.array(expected[name], dtype=float)
        np.testing.assert_allclose(got, exact, rtol=1e-11, atol=1e-11, err_msg=name)


def test_oracle_keeps_the_digits_it_is_asked_for():
    """A float hidden in a formula, such as 1/3, would show as a sum of 1e-17 instead of 1e-50."""
    with mpmath.workdps(50):
        values = sym.oracle([1, 2, 4], ["0.3", "0.1", "-1"], 2, 1, "0.001", digits=50)
        assert abs(mpmath.fsum(values["dx"])) < mpmath.mpf(10) ** -48
        assert abs(mpmath.fsum(values["y"]) - 3) < mpmath.mpf(10) ** -48


def test_oracle_refuses_gradients_of_another_length():
    with pytest.raises(ValueError, match=r"g_values must have length 2, got 1"):
        sym.oracle([1.0, 2.0], [1.0])


# -- The double backward pass ---------------------------------------------------------------


@pytest.mark.parametrize("entry", [sym.g[i], gamma, x[i]], ids=["g", "gamma", "x"])
def test_double_backward_is_the_derivative_of_the_second_order_loss(entry):
    derived = sp.diff(sym.in_data(sym.second_order_loss()), entry.subs(i, j))
    stated = sym.double_backward()[entry].subs(i, j)
    assert sym.is_zero(derived - stated)
    assert not sym.is_zero(derived - 2 * stated)


def test_double_backward_equals_brute_differentiation_of_the_closed_form():
    """Phi = u·dx + a dgamma + b dbeta, written out for four values and differentiated."""
    size, eps = 4, sp.Rational(1, 100)
    xs, gs = sp.symbols(f"x1:{size + 1}"), sp.symbols(f"g1:{size + 1}")
    us = [sp.Rational(value, 7) for value in (3, -5, 2, 4)]
    a, b = sp.Rational(2, 3), sp.Rational(-1, 5)
    mu = sum(xs) / sp.Integer(size)
    std = sp.sqrt(sum((value - mu) ** 2 for value in xs) / size + eps)
    hats = [(value - mu) / std for value in xs]
    dot = sum(up * hat for up, hat in zip(gs, hats, strict=True))
    dxs = [
        gamma / std * (up - sum(gs) / sp.Integer(size) - hat * dot / size)
        for up, hat in zip(gs, hats, strict=True)
    ]
    phi = sum(u * dx for u, dx in zip(us, dxs, strict=True)) + a * dot + b * sum(gs)

    data, upstream, scale = RNG.normal(size=size), RNG.normal(size=size), 1.3
    at = dict(zip((*xs, *gs, gamma), (*data, *upstream, scale), strict=True))
    _, cache = bnkit.batch_norm_forward(data[:, None], [scale], [0.0], epsilon=float(eps))
    u = np.array(us, dtype=float)[:, None]
    d_dy, d_x, d_gamma = bnkit.batch_norm_double_backward(
        u, [float(a)], [float(b)], upstream[:, None], cache
    )

    def derivative(symbol):
        return float(sp.diff(phi, symbol).evalf(subs=at))

    np.testing.assert_allclose(d_dy[:, 0], [derivative(up) for up in gs], rtol=1e-10)
    np.testing.assert_allclose(d_x[:, 0], [derivative(value) for value in xs], rtol=1e-10)
    np.testing.assert_allclose(d_gamma, [derivative(gamma)], rtol=1e-10)


# -- The judge -----------------------------------------------------------------------------

FALSE_STATEMENTS = {
    "normalized values have mean square one": sym.total(x_hat[k] ** 2) - m,
    "dx without the projection on x_hat": sym.closed_form()
    - gamma / s * (sym.g[i] - sym.total(sym.g[k]) / m),
    "dx with means over m - 1": (
        sym.closed_form()
        - gamma
        / s
        * (sym.g[i] - (sym.total(sym.g[k]) + x_hat[i] * sym.total(sym.g[k] * x_hat[k])) / (m - 1))
    ),
    "a published slip, s to the power -1/2": (sym.closed_form() - STATED.subs(s, sp.sqrt(s))),
    "dx without gamma": sym.closed_form() - STATED / gamma,
    "a root of a multiple is the multiple of a root": (
        sp.sqrt(FACTOR * (variance + epsilon)) - FACTOR * sp.sqrt(variance + epsilon)
    ),
}


@pytest.mark.parametrize("name", FALSE_STATEMENTS)
def test_judge_refuses_a_false_statement(name):
    assert not sym.is_zero(FALSE_STATEMENTS[name])


def test_judge_accepts_the_moments_of_the_normalized_values():
    assert sym.is_zero(sym.total(x_hat[k]))
    assert sym.is_zero(sym.total(x_hat[k] ** 2) / m - variance / (variance + epsilon))


def test_constant_upstream_hides_the_wrong_formula():
    """Why the upstream is generic: with all ones, a dx without gamma passes too."""
    ones = sym.total(sp.S.One)
    wrong = STATED / gamma**5
    constant = wrong.xreplace({sym.g[i]: sp.S.One, sym.total(sym.g[k]): ones})
    constant = constant.xreplace({sym.total(sym.g[k] * x_hat[k]): sym.total(x_hat[k])})
    assert sym.is_zero(constant)


# -- The algebra of sums -------------------------------------------------------------------


def test_sums_over_two_indices_are_carried_out_over_both():
    """SymPy merges nested sums into one with two limits; once, only the first was read."""
    both = sym.total(sym.total(x[k] * x[l], k), l)
    assert sums.power_sums(both) == sym.total(x[k]) ** 2


@pytest.mark.parametrize("limits", [(k, 0, m), (k, 1, m - 1)])
def test_sums_over_part_of_the_batch_are_refused(limits):
    with pytest.raises(ValueError, match="must run from 1 to m"):
        sums.power_sums(sp.Sum(x[k], limits))


def test_sum_of_a_difference_prints_in_brackets_behind_its_factor():
    printed = sums.latex(sym.backward(mean).right)
    assert (
        r"- \frac{2}{m} \frac{\partial L}{\partial v} \sum_{k=1}^{m} \left({x}_{k} - \mu\right)"
        in printed
    )


def test_product_of_two_sums_prints_the_first_in_brackets():
    printed = sums.latex(2 * sym.total(x[k]) * sym.total(sym.g[k]))
    assert printed.count(r"\left(\sum") == 1


@pytest.mark.parametrize("equation", [*sym.FORWARD, *sym.paper_equations()])
def test_equation_shows_as_display_mathematics(equation):
    shown = equation._repr_latex_()
    assert shown.startswith("$$")
    assert shown.endswith("$$")
    assert " = " in shown


def test_long_equation_is_broken_into_its_terms():
    inserted = sym.closed_form_steps()[1].equation
    lines = inserted._repr_latex_().split(r"\\ &")
    assert len(lines) == len(inserted.right.args) == 3
    assert all(len(line) < 300 for line in lines)
