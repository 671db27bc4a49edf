// Figures that answer to the reader's hand: what all of them share.
//
// explorable(name, { controls, start, draw, drag, nudge }) makes the element <bn-NAME>. `draw` takes
// the state (one number for each control, and what `start` adds) and returns { svg, says, values }:
// the picture, a sentence for those who listen, and the numbers behind both. It is a pure function
// of the state, so that the same code draws the picture that stands there without JavaScript.
// A part of the picture with data-handle="NAME" can be dragged, or moved by the arrow keys.
(function () {
  const ALL = {};

  const control = ({ id, label, min, max, step, value, options }) => {
    if (options) {
      const choices = options.map((text, k) => `<option value="${k}">${text}</option>`).join("");
      return `<label><span>${label}</span><select name="${id}">${choices}</select></label>`;
    }
    if (step === undefined) {
      const checked = value ? " checked" : "";
      return `<label><span>${label}</span><input type="checkbox" name="${id}"${checked}></label>`;
    }
    return `<label><span>${label}</span><input type="range" name="${id}" min="${min}" max="${max}"` +
      ` step="${step}" value="${value}"><output></output></label>`;
  };

  const controlsOf = ({ controls }, state) =>
    (typeof controls === "function" ? controls(state) : controls);

  // What a page brings (as JSON within the element), what a figure starts with, its controls.
  const initial = (figure, data) => {
    const state = { ...(figure.start ? figure.start() : {}), ...data };
    const controls = controlsOf(figure, state);
    return { ...Object.fromEntries(controls.map(({ id, value }) => [id, Number(value ?? 0)])), ...state };
  };

  // The picture of the initial state, for pages that are read without JavaScript.
  const still = (name, data = {}) => ALL[name].draw(initial(ALL[name], data)).svg;

  function explorable(name, figure) {
    ALL[name] = figure;
    if (typeof HTMLElement === "undefined") return;
    customElements.define(`bn-${name}`, class extends HTMLElement {
      connectedCallback() {
        const data = this.querySelector("script");
        this.state = initial(figure, data ? JSON.parse(data.textContent) : {});
        this.controls = controlsOf(figure, this.state);
        this.innerHTML = `<form>${this.controls.map(control).join("")}</form>` +
          `<div class="picture"></div><p aria-live="polite"></p>`;
        this.addEventListener("input", (event) => this.read(event.target));
        this.addEventListener("submit", (event) => event.preventDefault());
        this.addEventListener("pointerdown", (event) => this.grab(event));
        this.addEventListener("keydown", (event) => this.nudge(event));
        this.show();
      }

      read({ name: id, type, checked, value }) {
        this.set({ [id]: type === "checkbox" ? Number(checked) : Number(value) });
      }

      set(changes) {
        Object.assign(this.state, changes);
        this.show();
      }

      show() {
        const { svg, says, values } = figure.draw(this.state);
        const focused = document.activeElement?.dataset?.handle;
        this.values = values;
        this.querySelector(".picture").innerHTML = svg;
        this.querySelector("p").textContent = says;
        for (const { id, step, format } of this.controls) {
          const output = this.querySelector(`[name="${id}"] + output`);
          if (step !== undefined) {
            output.textContent = format ? format(this.state[id]) : this.state[id];
          }
        }
        if (focused && this.contains(document.activeElement) === false) {
          this.querySelector(`[data-handle="${focused}"]`)?.focus();
        }
      }

      // Where the pointer is, in the units of the picture.
      place(event) {
        const svg = this.querySelector("svg");
        const { x, y } = new DOMPoint(event.clientX, event.clientY)
          .matrixTransform(svg.getScreenCTM().inverse());
        return [x, y];
      }

      grab(event) {
        const handle = event.target.closest("[data-handle]")?.dataset.handle;
        if (handle === undefined) return;
        event.preventDefault();
        const move = (moved) => this.set(figure.drag(this.state, handle, ...this.place(moved)));
        const end = () => {
          removeEventListener("pointermove", move);
          removeEventListener("pointerup", end);
          removeEventListener("pointercancel", end);
        };
        addEventListener("pointermove", move);
        addEventListener("pointerup", end);
        addEventListener("pointercancel", end);
        move(event);
        this.querySelector(`[data-handle="${handle}"]`)?.focus();
      }

      nudge(event) {
        const handle = event.target.dataset?.handle;
        const way = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
        if (handle === undefined || !way) return;
        event.preventDefault();
        this.set(figure.nudge(this.state, handle, way));
      }
    });
  }

  // Helpers for pictures: a linear scale, numbers as one reads them, the parts of an SVG.
  const scale = (from, to, start, end) => {
    const map = (value) => start + (value - from) / (to - from) * (end - start);
    map.invert = (place) => from + (place - start) / (end - start) * (to - from);
    return map;
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const moments = (values) => {
    const mu = mean(values);
    return { mu, v: mean(values.map((value) => (value - mu) ** 2)) };
  };
  const text = (value, digits = 2) =>
    (Math.abs(value) < 0.5 * 10 ** -digits ? 0 : value).toFixed(digits).replace("-", "−");
  const path = (points, name) => {
    const places = points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`);
    return `<path class="${name}" d="M${places.join("L")}"/>`;
  };
  const label = (x, y, words, name = "") => `<text class="${name}" x="${x}" y="${y}">${words}</text>`;
  const line = (x1, y1, x2, y2, name = "axis") =>
    `<line class="${name}" x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}"/>`;
  const handle = (name, x, y, says, value) =>
    `<circle class="handle" data-handle="${name}" tabindex="0" role="slider" aria-label="${says}"` +
    ` aria-valuenow="${value.toFixed(2)}" cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="9"/>`;
  const picture = (width, height, description, ...parts) =>
    `<svg viewBox="0 0 ${width} ${height}" role="group" aria-label="${description}">` +
    `${parts.flat().join("")}</svg>`;

  const shared = {
    explorable, still, scale, clamp, mean, moments, text, path, label, line, handle, picture,
  };
  if (typeof module !== "undefined") module.exports = shared;
  globalThis.explorables = shared;
})();
