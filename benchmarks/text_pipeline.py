"""Rows of tokens a second: the loader, masks included, against transformers' collator in torch's DataLoader.

    python -m benchmarks.text_pipeline [--data FILE --field gloss] [--length 128] [--rounds 5]

Both read the same documents, encoded once before, shuffled, a document a row of at most `length` tokens, in batches of
256: ours from its memory-mapped corpus, theirs from a `datasets` table of Arrow, padded to the longest of a batch. Both
hide 15 % of the words, ours by `MLM.drawn`, theirs by `DataCollatorForLanguageModeling`. Without `--data` the texts are
random words, of log-normal lengths. One thread and no further process on either side; they alternate; medians over the
rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from benchmarks.machine import markdown, write
from mmssl import MLM
from mmssl.data import Loader, TextSource, TextView, Vocabulary
from mmssl.data.documents import TextFiles
from mmssl.data.vocabulary import save_tokenizer, train_tokenizer

OURS, THEIRS, BATCH, WORDS = "mmssl", "transformers", 256, 8000


def made(path: Path, count: int = 20_000) -> Path:
    """Documents of random words, so many of log-normal lengths."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(5000)]
    texts = (" ".join(chance.choices(words, k=max(3, round(chance.lognormvariate(3, 0.8))))) for _ in range(count))
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file or folder of texts")
    parser.add_argument("--field", default="text")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="batches of a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or made(Path(scratch) / "made.jsonl")
        texts = [document.text for document in TextFiles(data, field=options.field).documents([])]
        save_tokenizer(train_tokenizer(texts, "wordpiece", WORDS), Path(scratch) / "words")
        vocabulary = Vocabulary.read(Path(scratch) / "words")
        source = TextSource(data, vocabulary, packing="document", length=options.length, field=options.field)
        method = MLM("tiny", vocab=vocabulary.size, mask=vocabulary.masked, special=vocabulary.framing, dupe_factor=0)
        loader = Loader(source, TextView(options.length, vocabulary.pad), batch_size=BATCH)
        tokenizer = AutoTokenizer.from_pretrained(Path(scratch) / "words")
        encoded = tokenizer(texts, truncation=True, max_length=options.length, return_token_type_ids=False)
        table = Dataset.from_dict(dict(encoded))
        table.save_to_disk(Path(scratch) / "table")
        theirs = DataLoader(
            Dataset.load_from_disk(Path(scratch) / "table"),
            BATCH,
            shuffle=True,
            drop_last=True,
            collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        )
        ways: dict[str, Callable[[], int]] = {
            OURS: lambda: sum(len(method.drawn(batch)["text"]) for batch in loader.batches(0, options.steps)),
            THEIRS: lambda: sum(len(batch["labels"]) for _, batch in zip(range(options.steps), theirs)),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            for name, read in ways.items():
                start = time.perf_counter()
                count = read()
                if number:  # the first round warms up
                    rates[name].append(count / (time.perf_counter() - start))
    ratio = statistics.median(ours / other for ours, other in zip(rates[OURS], rates[THEIRS], strict=True))
    told = {f"{name}, rows/s": f"{statistics.median(values):.0f}" for name, values in rates.items()}
    tokens = statistics.fmean(map(len, encoded["input_ids"]))
    what = f"{len(texts)} documents, {tokens:.0f} tokens on average, at most {options.length}"
    rows = [{"what": what, **told, "mmssl is faster by": f"{ratio:.2f}x"}]
    print(f"{markdown(rows)}\n\n{write('text-pipeline', torch.device('cpu'), {'rows': rows})}")


if __name__ == "__main__":
    main()
