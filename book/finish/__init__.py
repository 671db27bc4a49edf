"""What the book adds to Sphinx, so that its pages stand alone: a Sphinx extension."""

from finish import (
    accessibility,
    claims,
    descriptions,
    equations,
    explorables,
    figures,
    icons,
    mathematics,
    publishing,
    scripts,
)


def setup(app):
    mathematics.setup(app)
    equations.setup(app)
    descriptions.setup(app)
    explorables.setup(app)
    icons.setup(app)
    figures.setup(app)
    claims.setup(app)
    accessibility.setup(app)
    scripts.setup(app)
    publishing.setup(app)
    return {"parallel_read_safe": False, "parallel_write_safe": False}
