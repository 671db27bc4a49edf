"""A figure says in words what it shows, for those who cannot see it."""

import ast
import re

DRAWING = re.compile(r"(plt|pyplot)\.(subplots|subplot_mosaic|figure|plot|imshow|hist)$")


def calls(tree):
    """The names that are called anywhere in the tree, as they are written."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def statements(cell):
    """The Python of a cell, without IPython's magics."""
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE)).body


def drawing_cells(page):
    """The cells that make a figure: directly, or through a function that the page defines."""
    drawing_functions, found = set(), []
    for cell in page.code:
        for statement in statements(cell):
            called = calls(statement)
            if not (any(map(DRAWING.search, called)) or called & drawing_functions):
                continue
            if isinstance(statement, ast.FunctionDef):
                drawing_functions.add(statement.name)
            elif cell not in found:
                found.append(cell)
    return found


def alt(cell):
    return cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")


def test_figures_are_described_in_words(page):
    bare = [cell.source for cell in drawing_cells(page) if len(alt(cell).split()) < 5]
    assert bare == []


def test_descriptions_differ(pages):
    described = [alt(cell) for page in pages for cell in page.code if alt(cell)]
    assert len(set(described)) == len(described)


def test_figures_have_names_of_their_own(pages):
    names = [
        figure["name"]
        for page in pages
        for cell in page.code
        if (figure := cell.metadata.get("mystnb", {}).get("figure"))
    ]
    assert len(names) == len(set(names))
    assert all(name.startswith("fig-") for name in names)
