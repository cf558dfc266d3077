"""The report: one HTML file that needs nothing else, no network, no script, for light and dark screens."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from mmssl.evaluation.protocol import Row, pivot
from mmssl.report.curves import curves

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5d6675; --faint: #e3e6eb; --ground: #fff; --panel: #f6f7f9;
  --best: #e3f1e7; --best-ink: #14532d; --series-1: #2563c9; --series-2: #d9622b; --series-3: #2e8b57;
  --series-4: #8a4fbf; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #9aa4b2; --faint: #31363f; --ground: #15181d;
  --panel: #1d2127; --best: #17382a; --best-ink: #a7e3bf; --series-1: #6ea8fe; --series-2: #f2915f;
  --series-3: #63c48d; --series-4: #c199ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 0.5rem; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 0.75rem; padding-top: 1rem;
  border-top: 1px solid var(--faint); }
p { max-width: 44rem; margin: 0.75rem 0; }
.wide { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.85rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0.25rem; }
thead th { color: var(--soft); font-weight: 600; font-size: 0.875rem; }
thead th[colspan] { text-align: center; padding-bottom: 0.15rem; }
thead th[colspan]::after { content: ""; display: block; border-bottom: 1px solid var(--faint); padding-top: 0.15rem; }
thead tr:last-child th { border-bottom: 1.5px solid var(--soft); }
tbody td, tbody th { border-bottom: 1px solid var(--faint); font-weight: 400; }
td.best { background: var(--best); color: var(--best-ink); font-weight: 650; }
td small { color: var(--soft); font-size: 0.8em; } td.best small { color: inherit; font-weight: 400; }
.words th, .words td { text-align: left; white-space: normal; vertical-align: top; }
.words td:first-child:not(.picture) { min-width: 20rem; }
.words .picture img { max-width: none; } mark { background: var(--best); color: var(--best-ink); font-weight: 650; }
.confusion td { background: color-mix(in srgb, var(--series-1) var(--share), transparent); padding: 0.4rem 0.6rem; }
figure { margin: 1.25rem 0; }
.charts figure { margin: 0; }
pre { margin: 0; padding: 0.7rem 0.9rem; background: var(--panel); border-radius: 8px; font-size: 0.85rem;
  font-family: ui-monospace, "SF Mono", Menlo, "Liberation Mono", monospace; width: max-content; min-width: 100%; }
details { margin: 1.25rem 0; } summary { cursor: pointer; color: var(--soft); font-weight: 600; }
figure img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; }
figcaption, .note { color: var(--soft); font-size: 0.875rem; line-height: 1.45; max-width: 44rem; margin-top: 0.6rem; }
.sounds { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; color: var(--soft); font-size: 0.875rem; }
.sounds div { display: flex; align-items: center; gap: 0.5rem; } .sounds audio { width: 16rem; height: 2.25rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem;
  margin: 1.25rem 0; }
.chart { width: 100%; height: auto; background: var(--panel); border-radius: 8px; padding: 0.5rem; }
.chart text { font-size: 12px; fill: var(--soft); }
.chart .title { font-size: 13px; font-weight: 600; fill: var(--ink); }
.chart .grid { stroke: var(--faint); } .chart .axis { stroke: var(--soft); fill: none; }
.chart .line { stroke: var(--line); fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.chart .dot { fill: var(--line); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 0 2.5rem;
  margin: 1.25rem 0; font-size: 0.9rem; }
dl div { display: flex; justify-content: space-between; gap: 1rem; padding: 0.3rem 0;
  border-bottom: 1px solid var(--faint); }
dt { color: var(--soft); } dd { margin: 0; text-align: right; overflow-wrap: anywhere;
  font-family: ui-monospace, "SF Mono", Menlo, "Liberation Mono", monospace; font-size: 0.85em; }
@media print { .wide, figure, .chart { break-inside: avoid; } }
"""
Piece = tuple[str, bool]
"""A text, and whether it is marked."""
# Pictures are shown larger than they are where there is room.
_ENLARGED = 1.5


class Report:
    """Collects sections in order and writes them as one page. Every text is escaped; none is read as HTML."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._sections: list[str] = []
        self._pictures: dict[str, bytes] = {}

    def heading(self, text: str) -> None:
        """The heading of what follows."""
        self._sections.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Paragraphs, parted by empty lines."""
        self._sections += [f"<p>{escape(paragraph)}</p>" for paragraph in re.split(r"\n\s*\n", text.strip())]

    def accuracies(self, rows: Sequence[Row]) -> None:
        """Accuracies in %: a line a representation, a column a probe and budget, the best of each marked."""
        columns, body = pivot(rows)
        metric = escape(f"{rows[0].metric}, %")
        best = {column: max(_rounded(line[i]) for line in body.values()) for i, column in enumerate(columns)}
        probes = [(probe, len(list(group))) for probe, group in groupby(probe for probe, _ in columns)]
        head = "".join(f'<th colspan="{span}" scope="colgroup">{escape(probe)}</th>' for probe, span in probes)
        budgets = "".join(f'<th scope="col">{escape(budget)}</th>' for _, budget in columns)
        lines = "".join(
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(_cell(row, best[column]) for row, column in zip(line, columns, strict=True))
            + "</tr>"
            for name, line in body.items()
        )
        self._sections.append(
            f'<div class="wide"><table><thead><tr><th></th>{head}</tr><tr><th>{metric}</th>{budgets}</tr>'
            f"</thead><tbody>{lines}</tbody></table></div>"
        )

    def words(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[Sequence[Piece]]],
        caption: str,
        pictures: Sequence[bytes] = (),
    ) -> None:
        """A table whose cells are pieces of text, some of them marked; a cell of many words may take several lines.
        pictures: PNG files, which stand before the rows, one each."""
        names = "".join(f'<th scope="col">{escape(name)}</th>' for name in (*([""] if pictures else []), *head))
        shown = [f'<td class="picture"><img src="{_png(each)}" alt=""></td>' for each in pictures] or [""] * len(rows)
        lines = "".join(
            f"<tr>{picture}{''.join(f'<td>{_pieces(cell)}</td>' for cell in row)}</tr>"
            for picture, row in zip(shown, rows, strict=True)
        )
        self._sections.append(
            f'<figure><div class="wide"><table class="words"><thead><tr>{names}</tr></thead><tbody>{lines}</tbody>'
            f"</table></div><figcaption>{escape(caption)}</figcaption></figure>"
        )

    def confusion(self, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        """How many samples of each class, a row, are taken for each, a column: the darker, the larger a share of the
        row."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
        lines = "".join(
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(f'<td style="--share:{100 * each / max(1, sum(row)):.0f}%">{each or ""}</td>' for each in row)
            + "</tr>"
            for name, row in zip(classes, counts, strict=True)
        )
        self._sections.append(
            f'<div class="wide"><table class="confusion"><thead><tr><th>is, taken for</th>{head}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div>"
        )

    def curves(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """The charts of `mmssl.report.curves`, side by side where there is room, each with how to read it."""
        charts = [
            f"<figure>{svg}<figcaption>{escape(reading)}</figcaption></figure>" for svg, reading in curves(metrics)
        ]
        self._sections.append(f'<div class="charts">{"".join(charts)}</div>')

    def figure(self, png: bytes, caption: str, *, name: str, enlarged: bool = True) -> None:
        """A PNG picture with its caption; `name` (letters, digits, dot, dash, underscore) is its file name on `write`.

        enlarged: it is shown larger than it is, without smoothing; not where it has texts.
        Raises ValueError for a name with other characters or one already taken.
        """
        if not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII) or name in self._pictures:
            raise ValueError(f"A picture's name must be new and of letters, digits, '.', '-' and '_'; got {name!r}.")
        self._pictures[name] = png
        text = escape(caption)
        width = int.from_bytes(png[16:20])  # as the PNG's header says
        style = f"width:{_ENLARGED * width:g}px" if enlarged else f"width:{width}px;image-rendering:auto"
        image = f'<img src="{_png(png)}" alt="{text}" style="{style}">'
        self._sections.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")

    def sounds(self, files: Sequence[bytes], caption: str) -> None:
        """A player for each of some Ogg files, numbered from 1, with their caption."""
        players = "".join(
            f'<div>{number}<audio controls preload="metadata" aria-label="sound {number}" '
            f'src="data:audio/ogg;base64,{base64.b64encode(file).decode()}"></audio></div>'
            for number, file in enumerate(files, 1)
        )
        self._sections.append(
            f'<figure><div class="sounds">{players}</div><figcaption>{escape(caption)}</figcaption></figure>'
        )

    @contextmanager
    def folded(self, summary: str) -> Iterator[None]:
        """What is added meanwhile is hidden behind this line until a reader opens it."""
        self._sections.append(f"<details><summary>{escape(summary)}</summary>")
        yield
        self._sections.append("</details>")

    def command(self, text: str) -> None:
        """A line to be typed."""
        self._sections.append(f'<div class="wide"><pre>{escape(text)}</pre></div>')

    def settings(self, values: Mapping[str, Any]) -> None:
        """Settings as a list of names and values, in the order given."""
        pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(v))}</dd></div>" for name, v in values.items())
        self._sections.append(f"<dl>{pairs}</dl>")

    def html(self) -> str:
        """The whole page."""
        title = escape(self._title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>\n<h1>{title}</h1>\n"
            + "\n".join(self._sections)
            + "\n</main></body></html>\n"
        )

    def write(self, folder: Path, *, pictures: bool = False) -> Path:
        """Write `folder/report.html`, and the pictures as `folder/pictures/NAME.png` if asked; the page's path.

        Folders are made where they are missing. Raises OSError where the disk refuses.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if pictures:
            (folder / "pictures").mkdir(exist_ok=True)
            for name, png in self._pictures.items():
                (folder / "pictures" / f"{name}.png").write_bytes(png)
        page = folder / "report.html"
        page.write_text(self.html(), encoding="utf-8")
        return page


def _rounded(row: Row | None) -> float:
    """What the table shows, so that two cells that read the same are both marked, or neither."""
    return -1.0 if row is None else round(100 * row.accuracy, 1)


def _cell(row: Row | None, best: float) -> str:
    if row is None:
        return "<td></td>"
    mean, _, deviation = str(row).partition(" ")
    mark = ' class="best"' if _rounded(row) == best else ""
    spread = f" <small>{deviation}</small>" if deviation else ""
    return f"<td{mark}>{mean}{spread}</td>"


def _png(content: bytes) -> str:
    """A file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _pieces(cell: Sequence[Piece]) -> str:
    return " ".join(f"<mark>{escape(text)}</mark>" if marked else escape(text) for text, marked in cell)
