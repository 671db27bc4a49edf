"""Every page stands in the contents, has its notebook in step, and is built like the others."""

import os
import re
from pathlib import Path

import nbformat
import yaml

BOOK = Path(__file__).parents[2] / "book"

HEADER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# """

SETUP = """\
# Only Colab needs this: everywhere else bnkit is already installed.
import sys

REPOSITORY = ""
if "google.colab" in sys.modules:
    if not REPOSITORY:
        raise RuntimeError("This copy of the book does not know its repository: set REPOSITORY.")
    %pip install --quiet --no-deps git+{REPOSITORY}"""


def with_repository(source):
    """The source of a cell as the notebook has it: it names the repository that is set."""
    config = yaml.safe_load((BOOK.parent / "_config.yml").read_text(encoding="utf-8"))
    repository = config["repository"]["url"]
    return source.replace('\nREPOSITORY = ""\n', f'\nREPOSITORY = "{repository}"\n')


def section(text, title):
    """What stands between this heading of the second level and the next one."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"no section '{title}'"
    return found[1]


def test_contents_name_each_page_once(pages):
    named = sorted(page.path for page in pages)
    assert named == sorted(BOOK.rglob("*.md"))


def test_each_chapter_has_a_notebook_beside_it_and_nothing_else_has(chapters):
    notebooks = {path for path in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}
    assert notebooks == {chapter.path.with_suffix(".ipynb") for chapter in chapters}


def test_notebook_says_what_its_source_says(chapter):
    notebook = nbformat.read(chapter.path.with_suffix(".ipynb"), as_version=4)
    got = [(c.cell_type, c.source, dict(c.metadata)) for c in notebook.cells]
    want = [(c.cell_type, with_repository(c.source), dict(c.metadata)) for c in chapter.cells]
    assert got == want, "run `make notebooks`"


def test_notebook_carries_no_output(chapter):
    notebook = nbformat.read(chapter.path.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_chapter_opens_with_the_header_and_a_title(chapter):
    assert chapter.text.startswith(HEADER)


def test_page_has_one_title(page):
    assert len(re.findall(r"^# ", page.prose, flags=re.MULTILINE)) == 1


def test_setup_for_colab_comes_first_and_once(chapter):
    first, *others = chapter.code
    assert first.source == SETUP
    assert first.metadata == {"tags": ["remove-cell"]}
    assert not any("google.colab" in cell.source for cell in others)


def test_front_page_runs_no_code(pages):
    """It has no notebook, and so no setup for Colab."""
    assert pages[0].code == []


def test_opening_says_what_is_learnt_and_what_is_needed(chapter):
    opening = chapter.cells[0].source
    title, lead, *_ = opening.split("\n\n")
    learn, need = opening.split("**What you will learn**")[1].split("**What you need**")
    assert title.startswith("# ")
    assert not lead.startswith(("*", "-", "#", ">"))
    assert 3 <= len(re.findall(r"^- ", learn, flags=re.MULTILINE)) <= 5
    assert need.strip()


def test_sections_end_with_check_yourself_and_read_next(chapter):
    sections = re.findall(r"^## (.+)$", chapter.prose, flags=re.MULTILINE)
    assert len(sections) > 2
    assert sections[-2:] == ["Check yourself", "Read next"]


def test_check_yourself_folds_its_answers(chapter):
    questions = section(chapter.prose, "Check yourself")
    # Blank lines around the answer let its Markdown be rendered, here and in Colab.
    answers = re.findall(
        r"<details>\s*<summary>Answer</summary>\n\n.+?\n\n *</details>$",
        questions,
        flags=re.MULTILINE | re.DOTALL,
    )
    assert 3 <= len(answers) <= 5
    assert questions.count("<details>") == questions.count("</details>") == len(answers)


def test_read_next_cites_and_leads_to_the_next_chapter(chapter, chapters):
    reading = section(chapter.prose, "Read next")
    assert "{cite:" in reading
    for following in chapters[chapter.number : chapter.number + 1]:
        link = Path(os.path.relpath(following.path, chapter.path.parent)).as_posix()
        assert f"]({link}" in reading
