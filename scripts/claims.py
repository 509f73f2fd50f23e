"""Writes results/claims.md: the papers' numbers, and ours where a recorded run answers them.

python scripts/claims.py [FOLDER WITH RUNS ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlaprune.errors import UserError, line
from vlaprune.records import read
from vlaprune.report import claims

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    """Reads claims and runs, writes the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders that hold runs (default: results/runs)")
    parser.add_argument("--claims", type=Path, default=RESULTS / "claims", help="folder of CSV files")
    parser.add_argument("--output", type=Path, default=RESULTS / "claims.md")
    args = parser.parse_args()
    folders = args.runs or [RESULTS / "runs"]
    try:
        journals = {path.parent for folder in folders for path in folder.glob("**/journal*.jsonl")}
        args.output.write_text(claims.markdown(claims.load(args.claims), [read(f) for f in sorted(journals)]))
    except UserError as error:
        print(line(error), file=sys.stderr)
        sys.exit(2)
    print(args.output)


if __name__ == "__main__":
    main()
