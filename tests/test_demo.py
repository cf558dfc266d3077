"""The demo where Fashion-MNIST cannot be had: scikit-learn's digits, the same table and report."""

import json
from dataclasses import replace

from mmssl import Encoder, demo
from mmssl.data import subset
from mmssl.datasets import digits_source
from mmssl.errors import UserError
from mmssl.evaluation import protocol


def test_the_demo_falls_back_to_digits(tmp_path, monkeypatch, capsys):
    def unreachable(destination, given):
        raise UserError("nothing is reachable")

    monkeypatch.setattr(demo, "fetch_fashion_mnist", unreachable)
    monkeypatch.setattr(protocol, "_DRAWS", 1)  # each is a search for a penalty
    monkeypatch.setattr(demo, "digits_source", lambda part="train": subset(digits_source(part), range(300)))
    short, settings = 4.0, demo.demo_settings
    monkeypatch.setattr(demo, "demo_settings", lambda epochs: replace(settings(short), validate_every=2))
    demo.demo(None, tmp_path / "demo")
    said = capsys.readouterr().out
    assert "digits stand in for it: nothing is reachable" in " ".join(said.split())
    rows = json.loads((tmp_path / "demo" / "accuracies.json").read_text())
    assert {row["representation"] for row in rows} == {"raw pixels", "random init", "pretrained"}
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "method.encoder.transformer.dim" in page
    assert "Accuracy on half of the watched samples" in page
    watched = [json.loads(line) for line in (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()][-1]
    assert 0.3 < watched["knn_accuracy"] <= 1 and 0.3 < watched["linear_accuracy"] <= 1
    assert "model     MAE: encoder" in said
    assert Encoder.from_pretrained(tmp_path / "demo" / "final").dim == 192
