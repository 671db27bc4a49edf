"""Claims and verdicts get classes of their own, by which the style sheet tells them apart."""

import re

from docutils import nodes

VERDICT = re.compile(r"Verdict:\s+(\w+)")
VERDICTS = {"proved", "measured", "corrected", "disputed"}


def mark(app, doctree):
    for quotation in doctree.findall(nodes.block_quote):
        for strong in quotation.findall(nodes.strong):
            if verdict := VERDICT.match(strong.astext()):
                quotation["classes"] += ["claim", verdict[1]]
                strong["classes"].append("verdict")
    for cell in doctree.findall(nodes.entry):
        if cell.astext() in VERDICTS:
            cell["classes"] += ["verdict", cell.astext()]


def setup(app):
    app.connect("doctree-read", mark)
