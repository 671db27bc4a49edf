// What scrolls sideways can be reached and scrolled by keyboard.
"use strict";

const SCROLLS = {
  "div.math > .formula": "Formula",
  ".cell_output .output": "Output",
  "div.highlight > pre": "Code",
  ".pst-scrollable-table-container": "Table",
};

function markWhatScrolls() {
  for (const [selector, name] of Object.entries(SCROLLS)) {
    for (const box of document.querySelectorAll(selector)) {
      if (box.scrollWidth > box.clientWidth) {
        box.tabIndex = 0;
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", `${name}, wider than the page`);
      } else if (box.getAttribute("role") === "group") {
        for (const attribute of ["tabindex", "role", "aria-label"]) box.removeAttribute(attribute);
      }
    }
  }
}

new ResizeObserver(markWhatScrolls).observe(document.body);
