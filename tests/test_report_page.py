from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
import torch

from mmssl.evaluation import Row
from mmssl.report import Report, attention_maps

ROWS = [
    Row("raw <pixels>", "kNN", "1 %", 0.70, 0.012, 5, 600),
    Row("raw <pixels>", "kNN", "all", 0.86961, None, 1, 60000),
    Row("pretrained", "kNN", "1 %", 0.75, 0.02, 5, 600),
    Row("pretrained", "kNN", "all", 0.87, None, 1, 60000),
    Row("pretrained", "linear", "all", 0.88, None, 1, 60000),
]


def picture() -> bytes:
    return attention_maps(torch.rand(1, 1, 28, 28), torch.rand(1, 2, 7, 7))


def full_report() -> Report:
    report = Report("A <title> & more")
    report.text("First </p><script>alert(1)</script>.\n\nSecond 'paragraph'.")
    report.heading("Accuracy <b>")
    report.accuracies(ROWS)
    report.curves([{"step": step, "loss": 1.0 / (step + 1), "lr": 0.1} for step in range(9)])
    report.figure(picture(), 'A "caption" <img src=x>', name="attention")
    report.sounds([b"one", b"two"], "What <i>was</i>")
    report.settings({"model": "tiny", "data": "<b>/a/b", "betas": (0.9, 0.95)})
    return report


class Structure(HTMLParser):
    VOID = ("meta", "img", "br", "path", "circle")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_self_contained_and_well_formed():
    html = full_report().html()
    found = Structure(html)
    assert found.open == []
    assert not re.search(r"https?:|@import|url\(", html)
    links = [value for name, value in found.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert len(links) == 3
    assert links[0].startswith("data:image/png;base64,") and links[1] == "data:audio/ogg;base64,b25l"
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]


def test_every_given_text_is_escaped():
    html = full_report().html()
    for raw in ("<i>", "<script", "<pixels>", "<title> &", "<b>", "<img src=x>"):
        assert raw not in html
    for escaped in (
        "A &lt;title&gt; &amp; more",
        "raw &lt;pixels&gt;",
        "&lt;script&gt;",
        "&lt;b&gt;/a/b",
        "&quot;caption",
        "What &lt;i&gt;was",
    ):
        assert escaped in html
    assert html.count("<p>") == 2


def test_the_best_of_each_column_is_marked_and_what_reads_equal_is_marked_equally():
    html = full_report().html()
    body = re.search("<tbody>(.*)</tbody>", html)[1].split("</tr>")
    marked = [re.findall(r'<td class="best">([\d.]+)', line) for line in body]
    assert marked[:2] == [["87.0"], ["75.0", "87.0", "88.0"]]
    assert "<td></td>" in body[0]
    assert "± 1.2" in body[0]
    assert re.findall(r'<th colspan="(\d)" scope="colgroup">(\w+)', html) == [("2", "kNN"), ("1", "linear")]


def test_write_makes_the_folder_and_the_pictures_only_when_asked(tmp_path):
    page = full_report().write(tmp_path / "new" / "run")
    assert page == tmp_path / "new" / "run" / "report.html"
    assert not (page.parent / "pictures").exists()
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    full_report().write(page.parent, pictures=True)
    png = (page.parent / "pictures" / "attention.png").read_bytes()
    embedded = re.search('base64,([^"]+)', full_report().html())[1]
    assert png.startswith(b"\x89PNG")
    assert base64.b64decode(embedded).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "taken"])
def test_picture_names_stay_inside_the_folder_and_are_used_once(name):
    report = Report("t")
    report.figure(picture(), "c", name="taken")
    with pytest.raises(ValueError, match="picture's name"):
        report.figure(picture(), "c", name=name)


def test_an_empty_report_is_a_page():
    assert Structure(Report("t").html()).open == []


def test_the_table_says_what_was_measured():
    report = Report("Sounds")
    report.accuracies([Row("log-mel", "linear", "all", 0.41, None, 1, 600, metric="mean average precision")])
    assert "<th>mean average precision, %</th>" in report.html() and "41.0" in report.html()
