"""Pictures with captions: where both lie, which of several captions is read, and the view that makes batches of them.

`open_pairs(data, tokenizer, "train", length=77)` gives pairs, `PairView(WindowView(224), 77)` batches of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from mmssl.data.decode import BrokenSample, opened
from mmssl.data.folders import Label, checked, listed, part_of, walk
from mmssl.data.shards import SHARD, Place, classes_in_json, object_in
from mmssl.data.source import DrawnSource, FolderSource, Source, Subset, told_of_part
from mmssl.data.tables import CAPTIONS, TABLES, Table, field_meant, parquet_files
from mmssl.data.text import TextView
from mmssl.data.views import Keys, View
from mmssl.data.vocabulary import Vocabulary
from mmssl.errors import UserError, as_text
from mmssl.masking.noise import random_bits

P = TypeVar("P", bound="PairFiles")
_TXT, _JSON = ".txt", ".json"
_PROBES = 100
# What stands where a sample has no picture, or no text.
_LACKING = {"image": torch.zeros(3, 16, 16, dtype=torch.uint8), "text": torch.zeros(0, dtype=torch.int64)}


class PairFiles(FolderSource):
    """Pictures with their captions as texts, of one of these:

    - tar shards in WebDataset's layout, `1.jpg` with `1.txt` or `1.json`, a folder of them or one;
    - a folder of such files, at any depth;
    - a manifest, .csv, .tsv, .jsonl or .parquet (see `Table`), or a folder of .parquet (see `parquet_files`).

    image_key: a manifest's column of the picture. caption_key: that of the caption, or the key in the JSON beside a
    picture, where otherwise `.txt` comes first; the usual names where not given (`tables.PICTURES` and `CAPTIONS`).
    Several captions are a list, or the lines of a `.txt`. label: a manifest's column of the class, or the key in the
    JSON; classes that are not given so are as in FolderSource. part: the part of a folder of .parquet.

    What lacks its picture or its caption, or has an empty one, is a sample that cannot be read: the loader skips,
    counts and names it as any other. In a folder a text without a picture is no sample; `notes` tell of it.

    Raises UserError when nothing is a pair, and for a column or key that is not there.
    """

    kind = "pair"
    beside = (_TXT, _JSON)

    def __init__(
        self,
        root: str | Path,
        *,
        image_key: str | None = None,
        caption_key: str | None = None,
        label: str | None = None,
        background: str = "white",
        part: Literal["train", "test"] | None = None,
    ) -> None:
        self.image_key, self.caption_key, self.part = image_key, caption_key, part
        self.table: Table | None = None
        super().__init__(root, 3, background, label)

    def located(self, root: Path, label: str | None = None) -> tuple[Path, list[str], Sequence[Label | None] | None]:
        """(folder, paths below it, labels) of the pairs, their texts not yet read."""
        self.given = root
        tabular = _is_tabular(root)
        if tabular or (root.suffix.lower() in TABLES and root.is_file()):
            folder, tables = (root, parquet_files(root, self.part)) if tabular else (root.parent, [root])
            self.table = Table(folder, tables, self.image_key, self.caption_key, label)
            return folder, self.table.names, self.table.labels
        if self.image_key is not None:
            raise UserError(f"{root} is no manifest: --image-key names the column of pictures of those alone.")
        self.root, paths, labels = super().located(root)
        self._texts, alone = self._beside(paths)
        self._key = self._key_of_captions()
        self._tell(paths, alone)
        if label is not None:
            texts = [self._described(place) for place in self._texts[_JSON]]
            labels = classes_in_json(texts, label, str(root), paths)
        if self.shards is None:
            return self.root, paths, labels
        return self.root, [*paths, *alone], None if labels is None else [*labels, *[None] * len(alone)]

    def _beside(self, paths: Sequence[str]) -> tuple[dict[str, Sequence[Place | str | None]], list[str]]:
        """Where the `.txt` and the `.json` of each picture lie, and those that have no picture."""
        if self.shards is not None:
            return dict(self.shards.beside), self.shards.alone
        stems = [os.path.splitext(path)[0] for path in paths]
        found: dict[str, dict[str, str]] = {ending: {} for ending in self.beside}
        for path in self.texts:
            stem, ending = os.path.splitext(path)
            found[ending.lower()][stem] = path
        pictures = set(stems)
        alone = [path for path in self.texts if os.path.splitext(path)[0] not in pictures]
        return {ending: [by_stem.get(stem) for stem in stems] for ending, by_stem in found.items()}, alone

    def _key_of_captions(self) -> str | None:
        """What the JSON beside pictures calls the caption, None where it has none."""
        places = [place for place in self._texts[_JSON] if place is not None][:_PROBES]
        fields = list(dict.fromkeys(field for place in places for field in object_in(self._described(place))))
        in_text = any(place is not None for place in self._texts[_TXT])
        if not in_text and not places:
            raise UserError(f"{self.given} has pictures but no caption: put a .txt or .json of its name beside each.")
        if self.caption_key is not None and not places:
            raise UserError(f"{self.given} has no JSON beside its pictures, where {self.caption_key!r} could be.")
        if in_text and self.caption_key is None:
            return next((name for name in CAPTIONS if name in fields), None)
        where = f"The JSON beside the pictures of {self.given}"
        return field_meant(where, fields, self.caption_key, CAPTIONS, "captions", "--caption-key")

    def _tell(self, paths: Sequence[str], alone: Sequence[str]) -> None:
        bare = [path for path, *places in zip(paths, *self._texts.values()) if not any(places)]
        told = {f"without a caption: {listed(bare)}": bare, f"captions without a picture: {listed(alone)}": alone}
        more = [as_text(f"{self.given}: {len(what)} {note}") for note, what in told.items() if what]
        self.notes = [*self.notes, *more]

    def _described(self, place: Place | str | None) -> bytes | None:
        try:
            return None if place is None else self.content(place)
        except BrokenSample:
            return None

    def captions(self, index: int) -> list[str]:
        """The captions of sample `index`; raises BrokenSample where it has none, or is no pair."""
        found = [text for each in self._given(index) if (text := each.strip())]
        if not found:
            raise BrokenSample("has an empty caption")
        return found

    def _given(self, index: int) -> list[str]:
        if self.table is not None:
            if (reason := self.table.broken.get(index)) is not None:
                raise BrokenSample(reason)
            return _as_captions(self.table.captions[index])
        if index >= len(self._texts[_TXT]):
            raise BrokenSample("has no picture")
        text, described = (self._texts[ending][index] for ending in (_TXT, _JSON))
        if text is not None and self.caption_key is None:
            return _decoded(self.content(text)).splitlines()
        if described is None or self._key is None:
            raise BrokenSample("has no caption")
        try:
            content = json.loads(_decoded(self.content(described)))
        except (ValueError, RecursionError) as error:
            raise BrokenSample(f"has JSON beside it that cannot be read ({error})") from error
        if not isinstance(content, dict) or self._key not in content:
            raise BrokenSample(f"has no {self._key!r} in its JSON")
        return _as_captions(content[self._key])

    @property
    def read_from(self) -> list[Path]:
        """The files that the pairs are read from: a manifest first, a shard once."""
        if self.table is None:
            return super().read_from
        return [*self.table.paths, *([] if self.table.holds_pictures else super().read_from)]

    def opened(self, index: int) -> AbstractContextManager[BufferedReader | BytesIO]:
        """Sample `index`'s picture, open for reading; raises BrokenSample."""
        if self.table is None:
            return super().opened(index)
        file = self.table.picture(index)
        return opened(self.root / file) if isinstance(file, str) else nullcontext(BytesIO(file))

    def read(self, index: int) -> dict[str, Tensor]:
        """The picture of a whole pair."""
        self.captions(index)
        return super().read(index)


def _is_tabular(root: Path) -> bool:
    """Whether a folder holds .parquet, and neither pictures nor shards."""
    media = (*PairFiles.extensions, SHARD)
    return bool(parquet_files(root, None)) and not any(path.lower().endswith(media) for path in walk(root)[0])


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenSample("has a caption that is not UTF-8") from error


def _as_captions(value: object) -> list[str]:
    """What a caption's field holds: a text, or several."""
    if value is None:
        raise BrokenSample("has no caption")
    texts: list[Any] = value if isinstance(value, list) else [value]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise BrokenSample(f"has a caption that is no text but {wrong[0]!r:.40}")
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise BrokenSample("has a caption that is not UTF-8")
    return texts


class PairSource(PairFiles):
    """Pairs of a picture and one of its captions (`pip install 'mmssl[media,text]'`).

    A sample is {"image": uint8 or float32 [3, H, W], "text": int64 [tokens]}, the caption in at most `length` tokens,
    framed as the tokenizer does, its end token kept where it is cut (see `Vocabulary.encoder`).
    tokenizer: a tokenizer.json of any origin, or a folder with one. drawn: which caption of several: one by the noise's
        stream "caption"; else the first as draw 0, the second as draw 1 and so on in turn, as evaluation has them.
    settings: those of PairFiles.
    """

    def __init__(
        self,
        root: str | Path,
        tokenizer: str | Path | Vocabulary,
        *,
        length: int = 77,
        drawn: bool = True,
        **settings: Any,
    ) -> None:
        self.vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.read(tokenizer)
        self.length, self.drawn = length, drawn
        self._encode = self.vocabulary.encoder(length)
        super().__init__(root, **settings)

    @property
    def sampling(self) -> str:
        """What decides on the samples beside the keys."""
        order = "drawn" if self.drawn else "in turn"
        return f"{super().sampling}, captions of {self.length} {order}, {self.vocabulary.digest}"

    def read(self, index: int) -> dict[str, Tensor]:
        """What evaluation takes as draw 0."""
        return _first(self, index)

    def draw(self, index: int, keys: Keys) -> Iterable[dict[str, Tensor]]:
        """The picture, with one of the captions for each of the slots of `keys`."""
        texts = self.texts_of(index, keys)
        image = FolderSource.read(self, index)
        return ({**image, "text": text} for text in texts)

    def texts_of(self, index: int, keys: Keys) -> list[Int64[Tensor, " tokens"]]:
        """The tokens of each slot's caption, without a look at the picture; raises BrokenSample."""
        captions = self.captions(index)
        if len(captions) == 1:
            chosen = [0] * len(keys.draw)
        else:
            number = random_bits(1, stream="caption", **keys._asdict())[:, 0] if self.drawn else keys.draw
            chosen = (number % len(captions)).tolist()
        encoded = {number: self._encode(captions[number]) for number in set(chosen)}
        if any(self.vocabulary.special.issuperset(ids) for ids in encoded.values()):
            raise BrokenSample("has a caption without a word that the tokenizer knows")
        return [torch.tensor(encoded[number]) for number in chosen]


class KnownPictures(Subset):
    """Pairs whose pictures are known by what a model made of them, and are not opened: a sample is {"image.features":
    float32 [width], "text"}.

    features: float32 [samples, width], a row for each sample of `source`, pairs or a subset of such. broken: why a
    sample has none, by its number. key: what the features depend on.
    """

    def __init__(
        self, source: Source, features: Float32[np.ndarray, "samples width"], broken: Mapping[int, str], key: str
    ) -> None:
        super().__init__(source, range(len(source)))
        self.features, self.broken, self.key = features, broken, key

    @property
    def sampling(self) -> str:
        return f"{super().sampling}, features {self.key}"

    def draw(self, index: int, keys: Keys) -> Iterable[dict[str, Tensor]]:
        """The features, with one of the captions for each of the slots of `keys`."""
        if (reason := self.broken.get(index)) is not None:
            raise BrokenSample(reason)
        pairs, number = _pair(self.source, index)
        features = torch.from_numpy(np.array(self.features[index]))
        return ({"image.features": features, "text": text} for text in pairs.texts_of(number, keys))

    def read(self, index: int) -> dict[str, Tensor]:
        """What evaluation takes as draw 0."""
        return _first(self, index)


def _pair(source: Source, index: int) -> tuple[PairSource, int]:
    """The pairs that a sample of a subset, of subsets, is one of, and its number there."""
    if isinstance(source, Subset):
        return _pair(source.source, source.indices[index])
    assert isinstance(source, PairSource)
    return source, index


def _first(source: DrawnSource, index: int) -> dict[str, Tensor]:
    zero = torch.zeros(1, dtype=torch.int64)
    return next(iter(source.draw(index, Keys(0, torch.tensor([index]), zero, zero))))


def open_pairs(
    path: str | Path, tokenizer: str | Path | Vocabulary, split: str | None = None, **settings: Any
) -> PairSource:
    """The `split` of a folder of pairs ("train", "test" or None, see `open_source` and `parquet_files`), or of one
    file, which has no parts; the rest as in PairSource."""
    return _part(partial(PairSource, tokenizer=tokenizer), Path(path), split, settings)


def open_pair_files(path: str | Path, split: str | None = None, **settings: Any) -> PairFiles:
    """The same, the captions as texts; the rest as in PairFiles."""
    return _part(PairFiles, Path(path), split, settings)


def _part(kind: Callable[..., P], root: Path, split: str | None, settings: Mapping[str, Any]) -> P:
    if _is_tabular(root):
        return kind(root, part=checked(split), **settings)
    return told_of_part(kind(part_of(root, split), **settings), root, split)


@dataclass(frozen=True)
class PairView:
    """Pairs as a batch: what the view `image` makes of the pictures, or where None their features [B, width], and of
    the captions `text` int64 [B, length], with `pad` behind their ends, and `text.length` int64 [B].

    unpaired: samples may lack the picture, then zeros, or the text, then empty: `image.present` and `text.present`
    bool [B] tell which have one."""

    image: View | None
    length: int = 77
    pad: int = 0
    unpaired: bool = False

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]:
        texts: list[dict[str, Tensor]] = []
        present: list[list[bool]] = []

        def pictures() -> Iterator[dict[str, Tensor]]:
            for sample in samples:
                present.append([name in sample for name in ("image", "text")])
                whole = {**_LACKING, **sample} if self.unpaired else sample
                texts.append({"text": whole["text"]})
                yield {name: value for name, value in whole.items() if name.startswith("image")}

        batch = _stacked(pictures()) if self.image is None else self.image(pictures(), keys)
        batch |= TextView(self.length, self.pad)(texts, keys)
        if not self.unpaired:
            return batch
        pictured, told = torch.tensor(present).unbind(1)
        return batch | {"image.present": pictured, "text.present": told}


def _stacked(samples: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    rows = list(samples)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def text_batch(texts: Sequence[str], vocabulary: Vocabulary, length: int = 77) -> dict[str, Tensor]:
    """Some texts, such as the names of classes, as a model of pairs reads them: `text` int64 [texts, length] and
    `text.length` int64 [texts]."""
    encode = vocabulary.encoder(length)
    zeros = torch.zeros(len(texts), dtype=torch.int64)
    samples = [{"text": torch.tensor(encode(text))} for text in texts]
    return TextView(length, vocabulary.pad)(samples, Keys(0, zeros, zeros, zeros))
