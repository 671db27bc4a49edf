"""What Sphinx and MyST-NB write that screen readers stumble over, mended."""

MENDS = {
    # A role that ARIA has given up.
    ' role="doc-biblioentry"': ' role="listitem"',
    # A name that contradicts the words that are seen: "Show code cell source".
    '<summary aria-label="Toggle hidden content">': "<summary>",
}


def mend(app, pagename, templatename, context, doctree):
    for wrong, right in MENDS.items():
        context["body"] = context.get("body", "").replace(wrong, right)


def setup(app):
    app.connect("html-page-context", mend)
