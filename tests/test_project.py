"""The files around the package agree with each other."""

import re
import tomllib
from pathlib import Path

import yaml

import bnkit

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def makefile_targets():
    return set(re.findall(r"^\.PHONY: (.*)$", read("Makefile"), flags=re.MULTILINE)[0].split())


def test_version_is_the_same_everywhere():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert (
        bnkit.__version__ == project["version"] == yaml.safe_load(read("CITATION.cff"))["version"]
    )


def test_title_of_the_citation_is_that_of_the_book():
    title = yaml.safe_load(read("_config.yml"))["title"]
    assert title == yaml.safe_load(read("CITATION.cff"))["title"]
    assert read("book/index.md").startswith(f"# {title}\n")


def test_ci_runs_only_what_the_readme_names():
    commands = re.findall(r"\b(make \w+)$", read(".ci/run"), flags=re.MULTILINE)
    assert commands == ["make book", "make test"]
    assert all(command in read("README.md") for command in commands)


def test_every_target_explains_itself_in_one_line():
    explained = set(re.findall(r"^([\w-]+):.*  ## \S", read("Makefile"), flags=re.MULTILINE))
    assert explained == makefile_targets()


def test_requirements_pin_every_version():
    lines = [line for line in read("requirements.txt").splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in lines)


def test_example_of_the_readme_runs_and_says_the_truth():
    (example,) = re.findall(r"^```python\n(.*?)^```", read("README.md"), re.MULTILINE | re.DOTALL)
    names = {}
    exec(example.replace("# dx is 0", "; assert abs(dx).max() < 1e-12  # dx is 0"), names)
    assert names["layer"].moving_mean.shape == (10,)
