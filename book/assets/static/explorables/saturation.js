// A normal distribution pushed through a nonlinearity, with and without normalization.
(function () {
  const { explorable, scale, mean, moments, text, path, label, line, picture } =
    globalThis.explorables;
  const COUNT = 400;
  const EPSILON = 1e-3;
  const sigmoid = (z) => 1 / (1 + Math.exp(-z));
  const FUNCTIONS = [
    { name: "sigmoid", f: sigmoid, slope: (z) => sigmoid(z) * (1 - sigmoid(z)), steepest: 0.25 },
    { name: "tanh", f: Math.tanh, slope: (z) => 1 - Math.tanh(z) ** 2, steepest: 1 },
    { name: "ReLU", f: (z) => Math.max(0, z), slope: (z) => Number(z > 0), steepest: 1 },
  ];

  // Quantiles of the standard normal distribution, by Newton's method on a series for erf.
  const density = (z) => Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI);
  const below = (z) => {
    let term = z, sum = z;
    for (let k = 1; k < 60; k++) sum += (term *= z * z / (2 * k + 1));
    return 0.5 + sum * density(z);
  };
  const quantile = (p) => {
    let z = 0;
    for (let k = 0; k < 60; k++) z -= Math.max(-0.5, Math.min(0.5, (below(z) - p) / density(z)));
    return z;
  };
  const NORMAL = Array.from({ length: COUNT }, (_, k) => quantile((k + 0.5) / COUNT));

  const compute = ({ mu, sigma, normalize, gamma, beta, kind }) => {
    const { f, slope, steepest } = FUNCTIONS[kind];
    const x = NORMAL.map((z) => mu + sigma * z);
    const of = moments(x);
    const inverse = 1 / Math.sqrt(of.v + EPSILON);
    const z = normalize ? x.map((value) => gamma * (value - of.mu) * inverse + beta) : x;
    const y = z.map(f);
    const slopes = z.map(slope);
    return {
      z, y,
      gradient: mean(slopes),
      saturated: mean(slopes.map((each) => Number(each < steepest / 10))),
      output: moments(y),
    };
  };

  const histogram = (values, low, high, bins) => {
    const counts = new Array(bins).fill(0);
    for (const value of values) {
      const bin = Math.floor((value - low) / (high - low) * bins);
      if (bin >= 0 && bin < bins) counts[bin] += 1 / values.length;
    }
    return counts;
  };

  const draw = (state) => {
    const { z, y, gradient, saturated, output } = compute(state);
    const { name, f, slope, steepest } = FUNCTIONS[state.kind];
    const [low, high] = [-10, 10];
    const [bottom, top] = [[-0.05, 1.05], [-1.1, 1.1], [-0.5, 10]][state.kind];
    const x = scale(low, high, 40, 420);
    const level = scale(bottom, top, 210, 40);
    const grid = Array.from({ length: 201 }, (_, k) => low + (high - low) * k / 200);
    const shares = histogram(z, low, high, 80);
    const inputs = shares.map((share, k) => {
      const height = 60 * share / Math.max(...shares);
      return `<rect class="input" x="${(40 + 4.75 * k).toFixed(2)}" y="${(290 - height).toFixed(1)}" width="4.2" height="${height.toFixed(1)}"/>`;
    });
    const ends = histogram(y, bottom, top, 40);
    const outputs = ends.map((share, k) => {
      const width = 150 * share / Math.max(...ends);
      return `<rect class="output" x="440" y="${(210 - 4.25 * (k + 1)).toFixed(2)}" width="${width.toFixed(1)}" height="3.8"/>`;
    });
    const flat = grid.map((value) => slope(value) < steepest / 10);
    const starts = grid.flatMap((_, k) => (flat[k] && !flat[k - 1] ? [k] : []));
    const shades = starts.map((k) => {
      const end = flat.indexOf(false, k);
      const width = x(end < 0 ? high : grid[end]) - x(grid[k]);
      return `<rect class="shade" x="${x(grid[k])}" y="40" width="${width}" height="170"/>`;
    });
    return {
      svg: picture(620, 320, `Inputs, the function ${name}, and its outputs`,
        shades,
        line(40, 290, 420, 290), line(40, 210, 420, 210), line(440, 40, 440, 210),
        label(40, 28, `${name} (line), slope (dashes)`), label(440, 28, "outputs"),
        label(40, 312, "inputs, −10 to 10; shaded: saturated"),
        inputs, outputs,
        path(grid.map((value) => [x(value), Math.max(36, level(f(value)))]), "curve"),
        path(grid.map((value) => [x(value), scale(0, 1.05, 210, 40)(slope(value) / steepest)]),
          "dashed")),
      says: `${text(100 * saturated, 0)} % saturated; mean slope ${text(gradient, 3)}; ` +
        `outputs: mean ${text(output.mu)}, variance ${text(output.v, 3)}.`,
      values: { saturated, gradient, mean: output.mu, variance: output.v },
    };
  };

  explorable("saturation", {
    controls: [
      { id: "kind", label: "function", options: FUNCTIONS.map(({ name }) => name) },
      { id: "mu", label: "mean of x", min: -6, max: 6, step: 0.1, value: 2, format: text },
      { id: "sigma", label: "std of x", min: 0.1, max: 8, step: 0.1, value: 4, format: text },
      { id: "normalize", label: "batch normalization", value: 0 },
      { id: "gamma", label: "γ", min: 0, max: 6, step: 0.1, value: 1, format: text },
      { id: "beta", label: "β", min: -6, max: 6, step: 0.1, value: 0, format: text },
    ],
    draw,
  });
})();
