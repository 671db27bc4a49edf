"""Figures follow the theme: on a dark page their ground is clear and their letters are light.

A picture in a page has the page's colour scheme, and a style sheet within it can ask for that.
Matplotlib writes its colours into each element; letters have none of their own and inherit one.
"""

from pathlib import Path

DARK = """\
@media (prefers-color-scheme: dark) {
  svg { fill: #dfe3e8 }
  g[id^="patch"] > path[style*="fill: #ffffff"] { fill: #121212 !important }
  [style*="stroke: #000000"] { stroke: #dfe3e8 !important }
  [style*="stroke: #6b6b6b"] { stroke: #a6adb6 !important }
  [style*="fill: #6b6b6b"] { fill: #a6adb6 !important }
  [style*="stroke: #e4e4e4"] { stroke: #34383e !important }
  [style*="stroke: #7a21dd"] { stroke: #b285f5 !important }
  [style*="fill: #7a21dd"] { fill: #b285f5 !important }
  [style*="stroke: #e42536"] { stroke: #ff6b75 !important }
  [style*="fill: #e42536"] { fill: #ff6b75 !important }
  [style*="stroke: #964a8b"] { stroke: #cf8bc5 !important }
  [style*="fill: #964a8b"] { fill: #cf8bc5 !important }
}
"""
BEGIN = '<style type="text/css">'


def write(app, exception):
    """Add the style for the dark to every figure."""
    if exception or app.builder.format != "html":
        return
    for figure in Path(app.outdir, "_images").glob("*.svg"):
        drawing = figure.read_text(encoding="utf-8")
        if DARK not in drawing:
            figure.write_text(drawing.replace(BEGIN, BEGIN + DARK, 1), encoding="utf-8")


def setup(app):
    app.connect("build-finished", write)
