"""With a repository named, a page leads to its notebook and to its source."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
URL = "https://github.com/owner/name"  # the provider is told by the address
CHAPTER = "book/10-settled/claims"


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The HTML of one chapter, built as whoever publishes the book builds it."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("_config.yml", "book/references.bib", "book/index.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in ("assets", "finish"):
        shutil.copytree(ROOT / "book" / name, folder / "book" / name)
    (folder / CHAPTER).parent.mkdir()
    for suffix in (".md", ".ipynb"):
        shutil.copy(ROOT / (CHAPTER + suffix), folder / (CHAPTER + suffix))
    config = folder / "_config.yml"
    text = re.sub(r'^  url: ".*"', f'  url: "{URL}"', config.read_text(), flags=re.MULTILINE)
    config.write_text(re.sub(r"^  branch: .*", "  branch: main", text, flags=re.MULTILINE))
    (folder / "_toc.yml").write_text(
        f"format: jb-book\nroot: book/index\nchapters:\n- file: {CHAPTER}\n"
    )
    run = [Path(sys.executable).with_name("jupyter-book"), "build", folder, "--quiet"]
    subprocess.run(run, check=True, capture_output=True)
    return (folder / "_build" / "html" / f"{CHAPTER}.html").read_text(encoding="utf-8")


def test_colab_opens_the_notebook(html):
    assert f"colab.research.google.com/github/owner/name/blob/main/{CHAPTER}.ipynb" in html


def test_binder_opens_the_notebook(html):
    assert f"mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/{CHAPTER}.ipynb" in html


def test_edit_leads_to_the_source(html):
    assert f"{URL}/edit/main/{CHAPTER}.md" in html


def test_download_gives_the_notebook(html):
    assert f'href="../../_sources/{CHAPTER}.ipynb"' in html
