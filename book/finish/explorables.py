"""Figures that answer to the reader's hand: their scripts, and a picture for where none runs."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path

from finish.mathematics import NODE

FOLDER = Path(__file__).parents[1] / "assets" / "static" / "explorables"
ELEMENT = re.compile(r"<bn-([a-z]+)>(.*?)</bn-\1>", re.DOTALL)
DATA = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)
STILL = "console.log(require('./explorable.js').still({0}, (require('./{1}.js'), {2})))"


@cache
def still(name, data):
    """The picture of an element's initial state, drawn by its own script."""
    program = STILL.format(json.dumps(name), name, data)
    run = [NODE, "--eval", program]
    return subprocess.run(run, cwd=FOLDER, check=True, capture_output=True, text=True).stdout


def with_picture(found):
    """The element with its data and its picture, in place of the words for other readers."""
    data = DATA.search(found[2])
    kept = data[0] if data else ""
    picture = still(found[1], data[1] if data else "{}")
    return f'<bn-{found[1]}>{kept}<div class="picture">{picture}</div></bn-{found[1]}>'


def add(app, pagename, templatename, context, doctree):
    body = context.get("body", "")
    names = sorted({found[1] for found in ELEMENT.finditer(body)})
    if names:
        context["body"] = ELEMENT.sub(with_picture, body)
        app.add_css_file("explorables/explorables.css")
        for name in ("explorable", *names):
            app.add_js_file(f"explorables/{name}.js", loading_method="defer")


def setup(app):
    app.connect("html-page-context", add)
