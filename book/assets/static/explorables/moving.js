// The moving mean on its way from 0 to the mean of the population: what is missing, and the noise.
(function () {
  const { explorable, scale, text, path, label, line, picture } = globalThis.explorables;
  const MEAN = 1;
  const MOMENTA = [0.5, 0.9, 0.95, 0.99, 0.995, 0.999];

  // A fixed sequence of standard normal numbers (Park and Miller's generator; Box and Muller).
  let seed = 20150211;
  const uniform = () => (seed = seed * 16807 % 2147483647) / 2147483647;
  const NOISE = Array.from({ length: 1000 }, () =>
    Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));

  const compute = ({ which, steps, size, sigma }) => {
    const p = MOMENTA[which];
    const moving = [0];
    for (let t = 1; t <= steps; t++) {
      const batch = MEAN + sigma / Math.sqrt(size) * NOISE[t - 1];
      moving.push(p * moving[t - 1] + (1 - p) * batch);
    }
    const expected = moving.map((_, t) => MEAN * (1 - p ** t));
    const noise = moving.map((_, t) =>
      sigma / Math.sqrt(size) * Math.sqrt((1 - p) / (1 + p) * (1 - p ** (2 * t))));
    return { p, moving, expected, noise };
  };

  const draw = (state) => {
    const { p, moving, expected, noise } = compute(state);
    const { steps } = state;
    const x = scale(0, steps, 50, 600);
    const y = scale(-0.4, 1.6, 250, 30);
    const at = (values) => values.map((value, t) => [x(t), Math.max(20, Math.min(260, y(value)))]);
    const high = at(expected.map((value, t) => value + 2 * noise[t]));
    const low = at(expected.map((value, t) => value - 2 * noise[t]));
    const kept = p ** steps;
    return {
      svg: picture(640, 290, "The moving mean against steps, and its expected course",
        line(50, 250, 600, 250), line(50, 30, 50, 250),
        line(50, y(MEAN), 600, y(MEAN), "mark"),
        label(596, y(MEAN) - 6, "mean of the population", "small end"),
        path([...high, ...low.reverse()], "band"),
        path(at(expected), "dashed"), path(at(moving), "curve"),
        label(44, y(0) + 4, "0", "small end"), label(44, y(1) + 4, "1", "small end"),
        label(50, 270, "0", "small"), label(600, 270, `${steps} steps`, "small end"),
        label(50, 20, "line: one run; dashes: on average; band: ± 2 std")),
      says: `After ${steps} steps ${text(100 * kept, 1)} % of the initial value is left; ` +
        `the noise is ${text(noise[steps], 3)}. ` +
        `Together an error of ${text(Math.hypot(MEAN * kept, noise[steps]), 3)}.`,
      values: { momentum: p, kept, expected: expected[steps], noise: noise[steps],
        moving: moving[steps], batches: NOISE.slice(0, steps).map((each) =>
          MEAN + state.sigma / Math.sqrt(state.size) * each) },
    };
  };

  explorable("moving", {
    controls: [
      { id: "which", label: "momentum", min: 0, max: MOMENTA.length - 1, step: 1, value: 3,
        format: (which) => MOMENTA[which] },
      { id: "steps", label: "steps", min: 10, max: 1000, step: 10, value: 100 },
      { id: "size", label: "batch size", min: 1, max: 256, step: 1, value: 16 },
      { id: "sigma", label: "std of the data", min: 0, max: 4, step: 0.1, value: 2, format: text },
    ],
    draw,
  });
})();
