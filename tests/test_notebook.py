"""The notebook of the documentation runs from top to bottom, and shows what it says."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    names = {"__name__": "notebook"}
    for cell in cells:
        exec(compile(cell, str(NOTEBOOK), "exec"), names)
    table = names["table"].set_index("method")
    assert table.loc["dense", "success"] == 20
    worst = table.loc["leastattended keep=0.25"]
    assert worst["verdict"] == "worse" and worst["kept"] < 64
    assert "leastattended" in capsys.readouterr().out
