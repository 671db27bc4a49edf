"""Claims and verdicts get classes of their own, by which the style sheet tells them apart."""

import re

from docutils import nodes

VERDICT = re.compile(
    r"(?:Verdict:\s+)?(holds in part|holds|does not hold|not settled),\s+"
    r"by\s+(?:proof|measurement|counter-example)\."
)


def verdicts(node):
    """The verdicts in a node, each with the class of its outcome."""
    for strong in node.findall(nodes.strong):
        if found := VERDICT.fullmatch(" ".join(strong.astext().split())):
            yield strong, found[1].replace(" ", "-")


def mark(app, doctree):
    for quotation in doctree.findall(nodes.block_quote):
        for strong, outcome in verdicts(quotation):
            quotation["classes"] += ["claim", outcome]
            strong["classes"].append("verdict")
    for table in doctree.findall(nodes.table):
        for strong, outcome in verdicts(table):
            table["classes"] += [name for name in ["claims"] if name not in table["classes"]]
            strong["classes"] += ["verdict", outcome]


def setup(app):
    app.connect("doctree-read", mark)
