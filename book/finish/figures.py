"""Figures follow the theme, and a page knows their size before they are there.

On a dark page a figure's ground is dark and its letters are light: a picture has the colour scheme
of its page, and a style sheet within it can ask for that. Matplotlib writes its colours into each
element; letters have none of their own and inherit one. On white, the lighter colours of lines are
too faint for letters.
"""

import re
from pathlib import Path

STYLE = """\
@media (prefers-color-scheme: light) {
  g[id^="text"] > [style*="fill: #f89c20"] { fill: #a86000 !important }
  g[id^="text"] > [style*="fill: #5790fc"] { fill: #2d6be0 !important }
  g[id^="text"] > [style*="fill: #9c9ca1"] { fill: #6b6b6b !important }
}
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
SIZE = re.compile(r'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"')
SHOWN = re.compile(r'(src="[./]*_images/([^"]+\.svg)") ?/>')
PIXELS = 4 / 3  # in a point


def write(app, exception):
    """Add the style to every figure, and its size to the pages that show it."""
    if exception or app.builder.format != "html":
        return
    sizes = {figure.name: finished(figure) for figure in Path(app.outdir, "_images").glob("*.svg")}
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        sized = SHOWN.sub(lambda found: f"{found[1]} {sizes[found[2]]}/>", text)
        if sized != text:
            page.write_text(sized, encoding="utf-8")


def finished(figure):
    """Width and height of a figure, as attributes, once it has its style."""
    drawing = figure.read_text(encoding="utf-8")
    if STYLE not in drawing:
        figure.write_text(drawing.replace(BEGIN, BEGIN + STYLE, 1), encoding="utf-8")
    width, height = (round(PIXELS * float(side)) for side in SIZE.search(drawing).groups())
    return f'width="{width}" height="{height}" '


def setup(app):
    app.connect("build-finished", write)
