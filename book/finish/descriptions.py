"""A page describes itself to search engines by the first sentences of its first paragraph."""

import re
from html import escape

from docutils import nodes

LENGTH = 250


def description(doctree, title):
    """Whole sentences of the lead, as many as fit; the book's title for a page without one."""
    lead = next(iter(doctree.findall(nodes.paragraph)), None) if doctree else None
    if lead is None:
        return title
    first, *others = re.split(r"(?<=[.?!]) ", " ".join(lead.astext().split()))
    for sentence in others:
        if len(first) + 1 + len(sentence) > LENGTH:
            break
        first += " " + sentence
    return first


def add(app, pagename, templatename, context, doctree):
    text = escape(description(doctree, app.config.html_title))
    context["metatags"] = (
        context.get("metatags", "") + f'<meta name="description" content="{text}"/>'
    )


def setup(app):
    app.connect("html-page-context", add)
