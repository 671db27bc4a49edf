"""A page is read before its scripts run: they are loaded beside it, and wait for its end."""

AT_ONCE = "documentation_options.js"  # a line of script in the page fills it in


def defer(app, pagename, templatename, context, doctree):
    for script in context["script_files"]:
        if script.filename and AT_ONCE not in script.filename:
            script.attributes.setdefault("defer", "defer")


def setup(app):
    app.connect("html-page-context", defer, priority=900)
