"""Where the repository is named, a page has a button that leads to its source.

Jupyter Book has a setting for it, and refuses to build with it while no repository is named.
"""


def add_edit_button(app, config):
    if config.html_theme_options.get("repository_url"):
        config.html_theme_options["use_edit_page_button"] = True


def setup(app):
    app.connect("config-inited", add_edit_button)
