"""A claim and its verdict get classes of their own, by which the style sheet tells them apart."""

import re

from docutils import nodes

VERDICT = re.compile(r"Verdict:\s+(\w+)")


def mark(app, doctree):
    for quotation in doctree.findall(nodes.block_quote):
        for strong in quotation.findall(nodes.strong):
            if verdict := VERDICT.match(strong.astext()):
                quotation["classes"] += ["claim", verdict[1]]
                strong["classes"].append("verdict")


def setup(app):
    app.connect("doctree-read", mark)
