"""Pairs in the report: pictures and captions beside those nearest to them, the matrix, and what was measured."""

import torch

from mmssl.data.vocabulary import Vocabulary, save_tokenizer, train_tokenizer
from mmssl.objectives.nearest import pair_figures
from mmssl.report import Report, curves
from mmssl.report.pairs import retrieval_told, zero_shot_told
from mmssl.report.run import draw, draw_figures
from mmssl.report.words import spelling
from tests.conformance.table import captioned, clip


def test_pictures_and_captions_stand_beside_those_nearest_to_them():
    seen = torch.eye(4)
    told = torch.tensor([[1.0, 0, 0, 0], [0, 0.6, 0.8, 0], [0, 0.8, 0.6, 0], [0, 0, 0, 1]])
    pictures = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    captions, places, matrix = pair_figures(pictures, [[5], [6, 7], [8], [5]], seen, told)
    words = [
        [tuple(each.id for each in cell if not isinstance(each, str)) for cell in row] for row in captions.table.rows
    ]
    assert [row[:2] for row in words] == [[(5,), (5,)], [(6, 7), (8,)], [(8,), (6, 7)], [(5,), (5,)]]
    own, first, second, _ = captions.table.rows[1]
    assert not any(each.marked for each in own) and first[-1] == "0.80" and not first[0].marked
    assert second[-1] == "0.60" and second[0].marked and second[1].marked
    assert [row[1] for row in places.table.rows] == [("1",), ("2",), ("2",), ("1",)]
    nearest = [round(255 * float(picture.mean())) for picture in places.columns[0]]
    assert nearest == [0, 2, 1, 3]
    torch.testing.assert_close(matrix.columns[0][0, 0], seen @ told.T)


def test_a_page_shows_the_pictures_in_the_rows_and_escapes_the_words():
    report, batch = Report("pairs"), captioned(0)
    batch = {name: batch[name] for name in ("image", "text", "text.length")}
    draw(report, clip(), batch, lambda ids, special: "<b>" + " ".join(map(str, ids)))
    page = report.html()
    assert page.count("<table") == 2 and page.count('<td class="picture">') == 2 * len(batch["image"])
    assert "&lt;b&gt;" in page and "<b>" not in page and "from top to bottom" in page


def test_captions_are_shown_without_the_tokens_that_frame_them(tmp_path):
    save_tokenizer(train_tokenizer(["a red cat sleeps"] * 20, "wordpiece", 40), tmp_path)
    words = Vocabulary.read(tmp_path)
    ids = [*words.encoder(12)("a red cat"), words.pad]
    (row,) = pair_figures(torch.zeros(1, 3, 2, 2), [ids], torch.eye(1), torch.eye(1))[0].table.rows
    report = Report("pairs")
    draw_figures(report, pair_figures(torch.zeros(1, 3, 2, 2), [ids], torch.eye(1), torch.eye(1)), spelling(tmp_path))
    page = report.html()
    assert len(row[0]) == len(ids) and page.count("a red cat") == 3 and "[" not in page.partition("<table")[2]


def test_the_scale_has_a_curve_where_a_method_tells_it():
    rows = [{"step": step, "loss": 1.0, "parts": {"accuracy": 0.1 * step, "scale": 14.0 + step}} for step in (1, 2)]
    assert [svg.count(">Scale<") for svg, _ in curves(rows)] == [0, 0, 1]
    assert len(curves([{**row, "parts": {"loss": 1.0}} for row in rows])) == 1


def test_what_was_measured_is_written_out():
    shares = {"recalls": {"1": 0.5, "5": 1.0}, "chance": {"1": 0.25, "5": 1.0}}
    (line,) = retrieval_told({"text to picture": {**shares, "median": 1, "queries": 4, "candidates": 4}})
    assert line == (
        "text to picture: R@1 50.0% (chance 25.0%), R@5 100.0% (chance 100.0%), median rank 1, 4 asked for among 4"
    )
    found = {"metric": "top-1 accuracy", "accuracy": 0.5, "top5": 0.75, "chance": 0.1, "largest": 0.2, "samples": 8}
    assert zero_shot_told({**found, "classes": 10, "templates": 2})[1:] == [
        "among the first five: 75.0%",
        "chance: 10.0%, the largest class alone 20.0%",
    ]
