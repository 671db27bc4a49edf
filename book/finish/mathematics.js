// Typesets TeX with MathJax: reads {tex, display} as JSON, one a line, and answers each with
// {svg, glyphs} or {error}. Glyphs are outlines that no earlier answer had: id to path.
// Usage: node mathematics.js FOLDER_OF_MATHJAX
const readline = require("node:readline");
const path = require("node:path");

const options = {
  loader: { load: ["input/tex-full", "output/svg", "a11y/assistive-mml"] },
  tex: {
    packages: { "[-]": ["noundefined", "noerrors"] }, // a mistake is an error, not red ink
    formatError: (jax, error) => { throw error; },
  },
  svg: { fontCache: "global" },
  startup: { typeset: false },
};

// Attributes that nothing on a page reads, and that would be most of its weight.
const lean = (html) => html
  .replace(/ (data-c|data-mml-node|data-mjx-[a-z]+|xmlns(:xlink)?|focusable|unselectable)="[^"]*"/g, "")
  .replace(/ role="img"/g, "")
  .replace(/xlink:href=/g, "href=")
  .replace(/<g>((?:<use [^>]*><\/use>|<rect [^>]*><\/rect>))<\/g>/g, "$1")
  .replace(/><\/(use|rect|path)>/g, "/>");

require(path.join(process.argv[2], "node-main.js")).init(options).then((MathJax) => {
  const { adaptor, output } = MathJax.startup;
  const known = new Set();
  const newGlyphs = () => {
    const paths = adaptor.childNodes(output.fontCache.getCache());
    const added = paths.filter((each) => !known.has(adaptor.getAttribute(each, "id")));
    return Object.fromEntries(added.map((each) => {
      const id = adaptor.getAttribute(each, "id");
      known.add(id);
      return [id, adaptor.getAttribute(each, "d")];
    }));
  };
  const answer = ({ tex, display }) => {
    try {
      const svg = lean(adaptor.outerHTML(MathJax.tex2svg(tex, { display })));
      return { svg, glyphs: newGlyphs() };
    } catch (error) {
      return { error: error.message };
    }
  };
  readline.createInterface({ input: process.stdin })
    .on("line", (line) => console.log(JSON.stringify(answer(JSON.parse(line)))));
});
