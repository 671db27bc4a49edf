// The backward pass takes two parts of a gradient away: its mean, and its slope along x_hat.
(function () {
  const { explorable, scale, clamp, mean, moments, text, path, label, line, handle, picture } =
    globalThis.explorables;
  const X = [-2.1, -1.5, -1.0, -0.6, -0.2, 0.1, 0.5, 0.8, 1.3, 2.7];
  const EPSILON = 1e-3;
  const { mu, v } = moments(X);
  const S = Math.sqrt(v + EPSILON);
  const HAT = X.map((value) => (value - mu) / S);
  const across = [scale(-2.4, 2.4, 40, 300), scale(-2.4, 2.4, 350, 610)];
  const up = scale(-3, 3, 240, 40);

  const compute = ({ gradient, gamma }) => {
    const level = mean(gradient);
    const slope = mean(gradient.map((g, i) => g * HAT[i]));
    const left = gradient.map((g, i) => g - level - HAT[i] * slope);
    return { level, slope, left, dx: left.map((each) => gamma / S * each) };
  };

  const draw = (state) => {
    const { level, slope, left, dx } = compute(state);
    const { gradient, gamma } = state;
    const fitted = (hat) => level + slope * hat;
    return {
      svg: picture(640, 290, "An upstream gradient, and what the backward pass lets through",
        label(40, 22, "g: drag a point up or down"), label(350, 22, "g − mean(g) − x̂ mean(g x̂)"),
        across.map((x) => line(x(-2.4), up(0), x(2.4), up(0)) + line(x(0), 40, x(0), 240)),
        path([[across[0](-2.4), up(fitted(-2.4))], [across[0](2.4), up(fitted(2.4))]], "dashed"),
        HAT.map((hat, i) =>
          line(across[0](hat), up(gradient[i]), across[0](hat), up(fitted(hat)), "thread") +
          line(across[1](hat), up(0), across[1](hat), up(left[i]), "thread")),
        HAT.map((hat, i) => `<circle class="point" cx="${across[1](hat).toFixed(1)}"` +
          ` cy="${up(left[i]).toFixed(1)}" r="6"/>`),
        HAT.map((hat, i) =>
          handle(String(i), across[0](hat), up(gradient[i]), `g of example ${i + 1}`, gradient[i])),
        label(40, 268, "across: x̂; dashes: taken away", "small"),
        label(350, 268, "times γ/s, this is dx", "small")),
      says: `mean(g) = ${text(level)}, mean(g x̂) = ${text(slope)}; ` +
        `dx: mean ${text(mean(dx))}, largest ${text(Math.max(...dx.map(Math.abs)))}, γ = ${text(gamma)}.`,
      values: { x: X, dy: gradient, mean: level, slope, dx },
    };
  };

  const moved = (state, name, value) => ({
    gradient: state.gradient.map((g, i) => (i === Number(name) ? clamp(value, -3, 3) : g)),
  });

  explorable("backward", {
    controls: [{ id: "gamma", label: "γ", min: -2, max: 2, step: 0.1, value: 1, format: text }],
    start: () => ({ gradient: [-1.2, 0.4, -0.9, 1.1, 0.3, 0.2, 1.8, 0.6, 1.5, 1.9] }),
    draw,
    drag: (state, name, _, place) => moved(state, name, up.invert(place)),
    nudge: (state, name, way) => moved(state, name, state.gradient[Number(name)] + 0.1 * way),
  });
})();
