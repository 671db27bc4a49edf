// Learning rate against initial scale, as it was recorded: what trains, with and without.
(function () {
  const { explorable, text, label, picture } = globalThis.explorables;

  const draw = ({ rates, scales, variants, rate, scale }) => {
    const [wide, high] = [270 / rates.length, 170 / scales.length];
    const panels = variants.map(({ title, accuracy }, k) => {
      const left = 60 + 290 * k;
      const cells = accuracy.flatMap((line, i) => line.map((value, j) => {
        const chosen = i === scale && j === rate;
        return `<rect class="${chosen ? "cell here" : "cell"}" x="${left + wide * j + 1}"` +
          ` y="${210 - high * (i + 1) + 1}" width="${wide - 2}" height="${high - 2}"` +
          ` style="fill-opacity:${(0.06 + 0.94 * value).toFixed(2)}"/>`;
      }));
      return label(left, 28, title) + cells.join("") +
        label(left, 228, `rate ${rates[0]}`, "small") +
        label(left + 270, 228, rates.at(-1), "small end");
    });
    const found = variants.map(({ title, accuracy }) => ({ title, value: accuracy[scale][rate] }));
    const heights = scales.map((each, i) => label(54, 213 - high * (i + 0.5), each, "small end"));
    return {
      svg: picture(640, 250, "Validation accuracy by learning rate and initial scale",
        label(60, 246, "darker: higher accuracy; up: initial scale", "small"), heights, panels),
      says: `Rate ${rates[rate]}, initial scale ${scales[scale]}: ` +
        found.map(({ title, value }) => `${title} ${text(100 * value, 1)} %`).join(", ") + ".",
      values: { rate: rates[rate], scale: scales[scale], accuracy: found.map(({ value }) => value) },
    };
  };

  // The page brings { rates, scales, variants: [{ title, accuracy: [a row for each scale] }] }.
  explorable("landscape", {
    controls: ({ rates, scales }) => [
      { id: "rate", label: "learning rate", min: 0, max: rates.length - 1, step: 1,
        value: rates.length >> 1, format: (k) => rates[k] },
      { id: "scale", label: "initial scale", min: 0, max: scales.length - 1, step: 1,
        value: scales.length >> 1, format: (k) => scales[k] },
    ],
    draw,
  });
})();
