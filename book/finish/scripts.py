"""A page is read before its scripts run: they are loaded beside it, and wait for its end."""

# The first is filled in by a line of script in the page; the page of search calls the other one.
AT_ONCE = ("documentation_options.js", "doctools.js")


def defer(app, pagename, templatename, context, doctree):
    for script in context["script_files"]:
        if script.filename and not script.filename.endswith(AT_ONCE):
            script.attributes.setdefault("defer", "defer")


def setup(app):
    app.connect("html-page-context", defer, priority=900)
