"""Fill the tables of README.md and of the pages beside this file from results/, so that no number is typed by hand.

    python -m benchmarks.readme                     # from the results that are there
    python -m benchmarks.readme --demo runs/demo    # after taking over a demo's accuracies and picture

A table stands between `<!-- NAME -->` and `<!-- end -->`; NAME is the result file's without its ending. `NAME#growth`
takes its table of that name, `NAME: A, B` the columns A and B alone, `NAME; word` the rows with it in the first cell.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import torch

from benchmarks.machine import RESULTS, markdown, write
from mmssl.evaluation import Row, table
from mmssl.report.run import ACCURACIES

PAGES = (
    RESULTS.parent.parent / "README.md",
    *(RESULTS.parent / f"{name}.md" for name in ("measured", "learning", "contrastive", "attention")),
)
MARKED = r"<!-- ([\w.-]+)(?:#(\w+))?(?:: ([^>;]+?))?(?:; ([^>]+?))? -->\n.*?<!-- end -->"
PICTURE = RESULTS / "demo.png"


def filled(text: str) -> str:
    """A page's text with every marked table written anew."""

    def replace(match: re.Match[str]) -> str:
        content = json.loads((RESULTS / f"{match[1]}.json").read_text())
        rows = content[match[2] or "rows"]
        if match[4]:
            rows = [row for row in rows if match[4] in next(iter(row.values()))]
        if match[3]:
            rows = [{column: row[column] for column in match[3].split(", ")} for row in rows]
        body = table([Row(**row) for row in rows]) if "probe" in rows[0] else markdown(rows)
        return f"{match[0].splitlines()[0]}\n{content['device']}, torch {content['torch']}:\n\n{body}\n<!-- end -->"

    return re.sub(MARKED, replace, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="run folder of a demo")
    options = parser.parse_args()
    if options.demo:
        write("demo", torch.device("cpu"), {"rows": json.loads((options.demo / ACCURACIES).read_text())})
        shutil.copyfile(options.demo / "pictures" / "reconstructions.png", PICTURE)
    for page in PAGES:
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
