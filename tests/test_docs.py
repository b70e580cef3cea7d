"""README and documentation: their commands parse, their links lead somewhere, their pages are in the menu."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from vqhps import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES]
_COMMAND = re.compile(r"^(?: {4}|\t)?\$? ?((?:vqhps|make) .*)$", re.MULTILINE)
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(path: Path) -> list[str]:
    """Lines of a page that begin with a command, in indented or fenced blocks; prose does not begin a line with one."""
    text = path.read_text(encoding="utf-8")
    fenced = [line for _, block in _FENCED.findall(text) for line in _COMMAND.findall(block)]
    indented = [line for line in _COMMAND.findall(_FENCED.sub("", text))]
    return fenced + indented


@pytest.mark.parametrize("path", [p for p in TEXTS if commands(p)], ids=name)
def test_command_lines_parse(path):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line in commands(path):
        program, *arguments = shlex.split(line, comments=True)
        if program == "make":
            assert arguments[0] in targets, line
            continue
        try:
            cli._parse(arguments)
        except SystemExit:
            pytest.fail(f"{path.name}: {line}")


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_links_and_pictures_exist(path):
    for groups in _LINK.findall(_FENCED.sub("", path.read_text(encoding="utf-8"))):
        target = "".join(groups).partition("#")[0]
        if target and not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_page_is_in_the_menu_once():
    def pages(menu: object) -> list[str]:
        if isinstance(menu, str):
            return [menu]
        return [page for entry in (menu.values() if isinstance(menu, dict) else menu) for page in pages(entry)]

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(pages(site["nav"])) == sorted(p.relative_to(DOCS).as_posix() for p in PAGES)


def test_every_picture_is_shown_and_they_are_small():
    shown = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    pictures = sorted((DOCS / "gallery").glob("*.jpg"))
    assert pictures and all(f"gallery/{p.name}" in shown for p in pictures)
    assert sum(p.stat().st_size for p in pictures) < 1_500_000
