"""The words of a text model: any `tokenizer.json`, which of its tokens are special, and training one.

Tokens are written and read by Hugging Face `tokenizers`; a folder with `tokenizer.json` is what transformers'
`AutoTokenizer` reads, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmssl.data.clip_tokenizer import CLIP, CLIP_LENGTH, cleaned
from mmssl.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["wordpiece", "bpe", "unigram"]
TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
# What `tokenizer_config.json` calls each special token, and what they are where it says nothing: BERT's and RoBERTa's.
_ROLES = {
    "cls": (("cls_token", "bos_token"), ("[CLS]", "<s>")),
    "sep": (("sep_token", "eos_token"), ("[SEP]", "</s>")),
    "pad": (("pad_token",), ("[PAD]", "<pad>")),
    "mask": (("mask_token",), ("[MASK]", "<mask>")),
}
# What `tokenizer_config.json` calls the way that texts are cleaned in before the tokenizer reads them.
_CLEANING = "cleaning"
# That of another tokenizer would be made anew from the vocabulary alone, without complaint.
_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer that a model and its texts need; the tokenizer itself is read where it is used.

    path: its tokenizer.json. size: one more than the highest id. special: every id that stands for no text. cls, mask:
    None where there is none. cleaning: "clip" where texts are to be cleaned as OpenAI's code does, or "". digest: a
    hash of tokenizer.json, of which tokens are special, and of the cleaning.
    """

    path: Path
    size: int
    cls: int | None
    sep: int
    pad: int
    mask: int | None
    special: frozenset[int]
    digest: str
    cleaning: Literal["", "clip"] = ""

    @classmethod
    def read(cls, path: str | Path) -> Vocabulary:
        """Of a tokenizer.json, or a folder with one; `tokenizer_config.json` beside it may name the special tokens,
        which otherwise are BERT's or RoBERTa's. Raises UserError without a token that ends a text.
        """
        file = Path(path)
        file = file / TOKENIZER if file.is_dir() else file
        tokenizer = _tokenizer(file)
        ids = tokenizer.get_vocab(with_added_tokens=True)
        config = _config(file.with_name(CONFIG))
        roles = {role: _special(ids, config, *names) for role, names in _ROLES.items()}
        begin, end = roles["cls"], roles["sep"]
        if end is None:
            raise UserError(_lacks(file, "ends", "sep"))
        added = tokenizer.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        special |= {number for number in roles.values() if number is not None}
        by_clip = str(config.get("tokenizer_class")).startswith("CLIPTokenizer")
        cleaning: Literal["", "clip"] = "clip" if config.get(_CLEANING) == "clip" or by_clip else ""
        pad = 0 if roles["pad"] is None else roles["pad"]  # what stands behind a text's end is never read
        digest = hashlib.blake2b(file.read_bytes(), digest_size=16)
        digest.update(repr((begin, end, pad, roles["mask"], sorted(special))).encode() + cleaning.encode())
        size = max(ids.values()) + 1
        return cls(file, size, begin, end, pad, roles["mask"], frozenset(special), digest.hexdigest(), cleaning)

    @property
    def masked(self) -> int:
        """The mask token's id; raises UserError where there is none."""
        if self.mask is None:
            raise UserError(
                f"The tokenizer {self.path} has no mask token: name its mask_token in tokenizer_config.json, or make a "
                "tokenizer that has one (`mmssl tokenizer`)."
            )
        return self.mask

    @property
    def beginning(self) -> int:
        """The id of the token that begins a text; raises UserError where there is none."""
        if self.cls is None:
            raise UserError(_lacks(self.path, "begins", "cls"))
        return self.cls

    @property
    def framing(self) -> tuple[int, ...]:
        """The ids that a row of tokens is framed by, which are never hidden: padding, beginning and end; ascending."""
        return tuple(sorted({self.pad, self.beginning, self.sep}))

    @property
    def files(self) -> dict[str, bytes]:
        """What goes beside a model, by names, so that its texts are read alike, as AutoTokenizer reads it, too."""
        config, reader = _config(self.path.with_name(CONFIG)), self.tokenizer()
        given = {"cls": self.cls, "sep": self.sep, "pad": self.pad, "mask": self.mask}
        names = {f"{role}_token": reader.id_to_token(number) for role, number in given.items() if number is not None}
        own = {_CLEANING: self.cleaning} if self.cleaning else {}
        return {TOKENIZER: self.path.read_bytes(), CONFIG: _written({**_CLASS, **names, **config, **own})}

    def save(self, folder: Path) -> None:
        """Write the tokenizer into a folder, such as its model's."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which neither cuts nor pads."""
        tokenizer = _tokenizer(self.path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encoder(self, length: int) -> Callable[[str], list[int]]:
        """What makes of a text the ids of at most `length` tokens that a model of whole texts, such as captions, reads:
        framed as the tokenizer does, always with the end token last, also of what was cut. UserError for a length of
        less than 3."""
        if length < 3:
            raise UserError(f"A text needs room for its beginning, a word and its end: a length of 3, not {length}.")
        tokenizer = self.tokenizer()
        if self.cleaning:
            from tokenizers import normalizers

            # Cleaning has done that, with other tables of Unicode: done twice, some rare letters would change again.
            tokenizer.normalizer = normalizers.Sequence([])

        def encode(text: str) -> list[int]:
            ids = tokenizer.encode(cleaned(text) if self.cleaning else text).ids
            return [*ids[: length - 1], self.sep] if len(ids) > length or ids[-1:] != [self.sep] else ids

        return encode


def _lacks(file: Path, what: str, role: str) -> str:
    return (
        f"The tokenizer {file} has no token that {what} a text: name its {role}_token in tokenizer_config.json, or add "
        f"{_ROLES[role][1][0]}."
    )


def tokenizer_beside(model: Path) -> Path | None:
    """The folder that holds the tokenizer of a model's folder: itself, or the run's whose model or checkpoint it is."""
    places = (model, model.parent) if (model.parent / "settings.json").is_file() else (model,)
    return next((folder for folder in places if (folder / TOKENIZER).is_file()), None)


def _tokenizer(file: Path) -> Tokenizer:
    # Threads are used where texts are encoded, and never in a forked process; tokenizers would warn of each fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from tokenizers import Tokenizer

    if not file.is_file():
        raise UserError(f"{file} does not exist: give a tokenizer.json, or make one by `mmssl tokenizer`.")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(f"{file} is no tokenizer of Hugging Face's tokenizers ({error}).") from error


def _config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); mend it.") from error
    return content if isinstance(content, dict) else {}


def _special(ids: dict[str, int], config: dict[str, Any], keys: tuple[str, ...], usual: tuple[str, ...]) -> int | None:
    named = [config[key] for key in keys if config.get(key)]
    contents = [name["content"] if isinstance(name, dict) else name for name in named]
    return next((ids[name] for name in (*contents, *usual) if name in ids), None)


def train_tokenizer(texts: Iterable[str], kind: Kind, size: int, *, lowercase: bool = True) -> Tokenizer:
    """A tokenizer of at most `size` tokens for `texts`: word pieces as BERT's, byte pairs as RoBERTa's, or a unigram
    model (Kudo 2018, arXiv 1804.10959) on BERT's special tokens.

    lowercase: all but byte pairs, which keep every byte, read small letters without accents. Trained twice, word pieces
    may come in another order, and a unigram model may differ: keep the file.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    names = ROBERTA if kind == "bpe" else BERT
    # RoBERTa's mask takes the space before it along, as words do.
    tokens = [AddedToken(name, special=True, lstrip=name == "<mask>") for name in names.values()]
    common: dict[str, Any] = {"vocab_size": size, "special_tokens": tokens, "show_progress": False}
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=2, **common
        )
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=names["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**common)
    else:
        tokenizer = Tokenizer(models.Unigram())
        plain = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
        tokenizer.normalizer = normalizers.Sequence(plain) if lowercase else normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=names["unk_token"], **common)
    tokenizer.train_from_iterator(texts, trainer)
    _frame(tokenizer, names)
    return tokenizer


def _frame(tokenizer: Tokenizer, names: dict[str, str]) -> None:
    """Let it put its special tokens round one text and two, as BERT's or RoBERTa's does."""
    from tokenizers.processors import TemplateProcessing

    begin, end = names["cls_token"], names["sep_token"]
    pair = f"{begin} $A {end} {end} $B {end}" if names is ROBERTA else f"{begin} $A {end} $B:1 {end}:1"
    ids = [(name, tokenizer.token_to_id(name)) for name in (begin, end)]
    tokenizer.post_processor = TemplateProcessing(single=f"{begin} $A {end}", pair=pair, special_tokens=ids)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and the tokenizer_config.json by which AutoTokenizer finds the special tokens."""
    kinds = ((BERT, "mask_token"), (ROBERTA, "mask_token"), (CLIP, "bos_token"))
    names = next(kind for kind, name in kinds if tokenizer.token_to_id(kind[name]) is not None)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER))
    more: dict[str, Any] = {}
    if names is BERT:
        more = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    elif names is CLIP:
        more = {"model_max_length": CLIP_LENGTH, _CLEANING: "clip"}
    (folder / CONFIG).write_bytes(_written({**_CLASS, **names, **more}))


def _written(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()
