"""Prints the book, built as one page, as a PDF with outline and tags: python pdf.py PAGE PDF."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MARGIN = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
PAGE_NUMBER = (
    '<div style="width: 100%; font-size: 8px; text-align: center"><span class="pageNumber"/></div>'
)
# A reader of paper can open nothing, and code of a few lines is not worth breaking.
PREPARE = """() => {
  for (const answer of document.querySelectorAll("details:not(.hide)")) answer.open = true;
  for (const code of document.querySelectorAll("div.highlight"))
    code.classList.toggle("short", code.textContent.trim().split("\\n").length <= 16);
}"""


def main(page, pdf):
    if CHROMIUM is None:
        sys.exit("A PDF needs chromium: on Debian, apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(color_scheme="light")
        tab.goto(Path(page).resolve().as_uri())
        tab.evaluate(PREPARE)
        tab.pdf(
            path=pdf,
            format="A4",
            scale=0.82,  # a line of code of 100 letters fits, and the text is of 10 points
            margin=MARGIN,
            tagged=True,
            outline=True,
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=PAGE_NUMBER,
        )
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
