"""The icons that pages use, as a style sheet of some kilobytes.

The theme brings all of Font Awesome, two thousand icons in a script of 1.5 MB, for some twenty.
Their outlines are taken from there. (Font Awesome Free, icons under CC BY 4.0.) The theme's style
sheet, which a page waits for, names all of them too; a third of it goes.
"""

import re
from pathlib import Path

STYLE = """\
/* Icons: Font Awesome Free (https://fontawesome.com), CC BY 4.0. */
.fas, .fab, .fa-solid, .fa-brands {
  font-family: inherit; /* else a font of 156 kB is fetched, to measure an empty line */
}

.fas::before, .fab::before, .fa-solid::before, .fa-brands::before {
  content: "";
  display: inline-block;
  width: 1em;
  height: 1em;
  vertical-align: -0.125em;
  background: currentcolor;
  mask: var(--icon) center / contain no-repeat;
}
"""
ICON = re.compile(r'"?([a-z0-9-]+)"?:\[(\d+),(\d+),\[([^\]]*)\],"[0-9a-f]+","([^"]+)"\]')
NAMES = re.compile(
    r"(?:\.fa-[\w-]+(?:::?before)?,?)+\{(?:--fa|content):[^}]*\}|@font-face\{[^}]*\}"
)
IN_SCRIPTS = {"xmark"}
STYLES = {"solid", "brands", "regular", "lg"}


def outlines(script):
    """Name (and other names) of each icon, to the width, height and path of its outline."""
    known = {}
    for name, width, height, others, path in ICON.findall(script):
        for each in (name, *re.findall(r'"([^"]+)"', others)):
            known.setdefault(each, (width, height, path))
    return known


def rule(name, width, height, path):
    """The style of one icon; a URL takes an SVG as it is, but for its angle brackets."""
    box = f"xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}'"
    svg = f"<svg {box}><path d='{path}'/></svg>".replace("<", "%3C").replace(">", "%3E")
    return f'.fa-{name} {{ --icon: url("data:image/svg+xml,{svg}"); }}\n'


def write(app, exception):
    """Write the style for the icons of all pages."""
    if exception or app.builder.format != "html":
        return
    pages = "".join(page.read_text(encoding="utf-8") for page in Path(app.outdir).rglob("*.html"))
    used = set(re.findall(r"\bfa-([a-z0-9-]+)", " ".join(re.findall(r'class="([^"]*)"', pages))))
    script = Path(app.outdir, "_static", "scripts", "fontawesome.js").read_text(encoding="utf-8")
    known = outlines(script)
    rules = (rule(name, *known[name]) for name in sorted(used - STYLES | IN_SCRIPTS))
    static = Path(app.outdir, "_static")
    (static / "icons.css").write_text(STYLE + "".join(rules), encoding="utf-8")
    theme = static / "styles" / "pydata-sphinx-theme.css"
    theme.write_text(NAMES.sub("", theme.read_text(encoding="utf-8")), encoding="utf-8")


def setup(app):
    app.add_css_file("icons.css")
    app.connect("build-finished", write)
