"""A report of any objective: one that predicts no pixels has features and attention all the same."""

from dataclasses import dataclass

import torch

from mmssl import MAE
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.objectives.objective import Objective, Output
from mmssl.report import Report
from mmssl.report.run import departures, draw, summary


@dataclass(frozen=True)
class PlainConfig:
    encoder: EncoderConfig = MAE("tiny", size=16, patch=8).config.encoder


class Plain(Objective):
    config_class = PlainConfig

    def __init__(self) -> None:
        super().__init__()
        self.config = PlainConfig()
        self.encoder = Encoder(self.config.encoder)

    def forward(self, batch, mask=None) -> Output:
        raise NotImplementedError


def test_an_objective_without_pixels_has_a_report():
    report, plain = Report("plain"), Plain()
    draw(report, plain, {"image": torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)})
    page = report.html()
    assert "What its features say" in page and "What it predicts" not in page
    assert page.count("data:image/png;base64") == 3


def test_the_first_sentences_say_what_was_trained_on_what_and_for_how_long():
    settings = {"media": "120 samples, 0a1b", "recipe.data": "my <pictures>"}
    row = {"step": 40, "epoch": 2.5, "loss": 0.51234, "samples_per_second": 10.0, "seen": 599, "skipped": 1}
    told = summary(MAE("tiny", size=16, patch=8), settings, [row | {"heldout_loss": 0.6}])
    assert told.startswith(
        "MAE on 120 samples of my <pictures>. It trained for 40 steps (2.5 epochs, about 1 minutes of training alone) "
        "and ended at a loss of 0.5123. On held-out media it is 0.6. Its encoder has 12 blocks of 192, 5.38 M"
    )
    assert "trained for" not in summary(MAE("tiny", size=16, patch=8), {}, [])


def test_what_differs_from_the_papers_settings_is_told_apart():
    method = MAE("base", norm_pix=True)
    found = departures(
        method, {"method.norm_pix": True, "method.mask_ratio": 0.75, "batch_size": 64, "keep": 2, "x": 1}
    )
    assert found == {"method.norm_pix": True, "batch_size": 64}
