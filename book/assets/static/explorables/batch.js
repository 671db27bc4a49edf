// A mini-batch of one channel: move one value, and see all the others move.
(function () {
  const { explorable, scale, clamp, moments, text, label, line, handle, picture } =
    globalThis.explorables;
  const x = scale(-6, 6, 40, 600);

  const compute = ({ values, epsilon, chosen }) => {
    const { mu, v } = moments(values);
    const s = Math.sqrt(v + epsilon);
    const hat = values.map((value) => (value - mu) / s);
    const m = values.length;
    const row = hat.map((each, j) => (Number(j === chosen) - (1 + hat[chosen] * each) / m) / s);
    return { mu, v, s, hat, row };
  };

  const draw = (state) => {
    const { mu, v, s, hat, row } = compute(state);
    const { values, chosen } = state;
    const bar = scale(-0.5, 0.5, 320, 240);
    const step = 560 / values.length;
    return {
      svg: picture(640, 350, "A batch, its normalized values, and a row of the Jacobian",
        label(40, 22, "x: drag a value, or move it with the arrow keys"),
        line(40, 60, 600, 60), line(x(mu), 40, x(mu), 80, "mark"),
        line(x(mu) - (x(Math.sqrt(v)) - x(0)), 80, x(mu) + (x(Math.sqrt(v)) - x(0)), 80, "mark"),
        label(x(mu) + 4, 96, "μ ± √v", "small"),
        label(40, 130, "x̂: where they come out"),
        line(40, 160, 600, 160), line(x(0), 148, x(0), 172, "mark"),
        values.map((value, j) => line(x(value), 60, x(hat[j]), 160, "thread")),
        hat.map((value, j) => `<circle class="${j === chosen ? "chosen" : "point"}"` +
          ` cx="${x(value).toFixed(1)}" cy="160" r="6"/>`),
        values.map((value, j) => handle(String(j), x(value), 60, `x of example ${j + 1}`, value)
          .replace('"handle"', j === chosen ? '"handle chosen"' : '"handle"')),
        label(40, 210, `∂x̂ of example ${chosen + 1} by each x: the row of the Jacobian`),
        line(40, 280, 600, 280),
        row.map((value, j) => {
          const height = Math.abs(bar(clamp(value, -0.5, 0.5)) - bar(0));
          const top = value > 0 ? 280 - height : 280;
          return `<rect class="${j === chosen ? "chosen" : "bar"}" x="${40 + step * j + 8}"` +
            ` y="${top.toFixed(1)}" width="${step - 16}" height="${height.toFixed(1)}"/>` +
            label(40 + step * (j + 0.5), value > 0 ? top - 5 : top + height + 14,
              text(value), "small middle") +
            label(40 + step * (j + 0.5), 345, j + 1, "small middle");
        })),
      says: `μ = ${text(mu)}, v = ${text(v)}, s = ${text(s)}; ` +
        `x̂ = ${hat.map((each) => text(each)).join(", ")}.`,
      values: { x: values, mean: mu, variance: v, x_hat: hat, row },
    };
  };

  const moved = (state, name, value) => ({
    chosen: Number(name),
    values: state.values.map((each, j) => (j === Number(name) ? clamp(value, -6, 6) : each)),
  });

  explorable("batch", {
    controls: [
      { id: "epsilon", label: "ε", min: 0, max: 1, step: 0.001, value: 0.001,
        format: (value) => text(value, 3) },
    ],
    start: () => ({ values: [-1.6, -0.4, 0.2, 0.9, 1.7, 4.2], chosen: 5 }),
    draw,
    drag: (state, name, place) => moved(state, name, x.invert(place)),
    nudge: (state, name, way) => moved(state, name, state.values[Number(name)] + 0.1 * way),
  });
})();
