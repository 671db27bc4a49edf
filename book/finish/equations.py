"""Where the text names an equation, as in "by (3.3)", it becomes a link to it."""

import re

from docutils import nodes

from finish.mathematics import anchor, number_of

NAMED = re.compile(r"\((\d+\.\d+)\)")
NO_LINKS_IN = (nodes.reference, nodes.literal, nodes.literal_block, nodes.raw, nodes.title)


def forget(app, env, docname):
    env.equations = {n: where for n, where in _equations(env).items() if where != docname}


def remember(app, doctree):
    found = (number_of(node.astext()) for node in doctree.findall(nodes.math_block))
    _equations(app.env).update((number, app.env.docname) for number in found if number)


def link(app, doctree, docname):
    for text in list(doctree.findall(nodes.Text)):
        if NAMED.search(text) and not _inside(text, NO_LINKS_IN):
            text.parent.replace(text, list(_pieces(app, text, docname)))


def _pieces(app, text, docname):
    """The text, cut into plain stretches and links."""
    end = 0
    for found in NAMED.finditer(text):
        where = _equations(app.env).get(found[1])
        if where is None:
            continue
        page = "" if where == docname else app.builder.get_relative_uri(docname, where)
        uri = f"{page}#{anchor(found[1])}"
        yield nodes.Text(text[end : found.start()])
        yield nodes.reference("", found[0], refuri=uri, internal=True)
        end = found.end()
    yield nodes.Text(text[end:])


def _inside(node, kinds):
    while (node := node.parent) is not None:
        if isinstance(node, kinds):
            return True
    return False


def _equations(env):
    if not hasattr(env, "equations"):
        env.equations = {}
    return env.equations


def setup(app):
    app.connect("env-purge-doc", forget)
    app.connect("doctree-read", remember)
    app.connect("doctree-resolved", link)
