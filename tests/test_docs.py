"""Documentation: commands that exist, links that lead somewhere, code that runs."""

import re
from pathlib import Path

import pytest

from vlaprune.commands import options
from vlaprune.commands.main import OTHERS, SCRIPTS
from vlaprune.testing import check_pruner

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    here = page.parent
    for target in LINK.findall(page.read_text()):
        known = target.startswith(("http://", "https://")) or (here / target).exists()
        assert known, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_exist(page):
    known = {group: options.options(group) for group in ("model", "method", "bench", "experiment")}
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", page.read_text(), re.S)
    lines = [line.split("#")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        command = re.match(r"\s*(?:\.venv/bin/)?vlaprune (\S+)", line)
        assert command is None or command[1] in {*SCRIPTS, *OTHERS, "--help", "--version", "COMMAND"}, line
        for group, names in re.findall(r"\b(model|method|bench|experiment)=([\w,]+)", line if command else ""):
            own = {"mine", "my_bench", "my_model", "NAME"}
            assert set(names.split(",")) <= {*known[group], *own}, line


def test_the_guides_method_keeps_the_laws(tmp_path):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "your-method.md").read_text(), re.S)[0]
    path = tmp_path / "guide.py"
    path.write_text(code)
    names = {"__name__": "guide"}
    exec(compile(code, str(path), "exec"), names)
    check_pruner(names["Mine"], styles=["parallel"])
    shown = re.search(r"```python\n(@dataclass\nclass FastV.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert shown and "def select" in shown[1]
