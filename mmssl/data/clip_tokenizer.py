"""CLIP's words: OpenAI's byte pairs of lower-cased text, and how texts are cleaned before they are read.

Radford et al. 2021, arXiv 2103.00020; the code is `simple_tokenizer.py` of openai/CLIP, which open_clip has, too. The
merges are no part of this library: they are read from a file of theirs.
"""

from __future__ import annotations

import gzip
import html
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MERGES = "bpe_simple_vocab_16e6.txt.gz"
CLIP_LENGTH = 77
# As transformers calls them; the padding is never read.
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
CLIP = {"bos_token": _BEGIN, "eos_token": _END, "pad_token": _END, "unk_token": _END}
# Of a file that has more: 49408 tokens less those of single bytes, with and without the mark of a word's end, and two.
_MERGES = 49408 - 2 * 256 - 2
_WORD_END = "</w>"
# Their pattern ignores case, where Python's `regex` takes the iota below a Greek vowel for neither: it is left out.
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"


def cleaned(text: str) -> str:
    """A text as OpenAI's code cleans it: ftfy mends its characters, HTML's entities are resolved twice, spaces become
    one, letters small."""
    # Nothing in printable ASCII is broken, and only an ampersand begins an entity.
    if "&" in text or not text.isascii() or not text.isprintable():
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def clip_tokenizer(merges: Path | None = None) -> Tokenizer:
    """CLIP's tokenizer of 49408 tokens, for texts that are `cleaned`; others are normalised as transformers does.

    What Unicode has held for less than about two years may be parted otherwise than by OpenAI's code, as that is from
    one version of `regex` to the next.

    merges: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, or the same as plain text; that of the installed open_clip_torch
    unless given. What spells a special token is read as that token. Raises UserError where there is no such file.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    pairs = _read_merges(_installed() if merges is None else merges)
    letters = _letters()
    words = [*letters, *(letter + _WORD_END for letter in letters), *(first + second for first, second in pairs)]
    vocabulary = {word: number for number, word in enumerate([*words, _BEGIN, _END])}
    model = models.BPE(vocab=vocabulary, merges=pairs, end_of_word_suffix=_WORD_END, unk_token=_END)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_WORD_END, " "), decoders.ByteLevel(), decoders.Strip(" ", 0, 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (_BEGIN, _END)])
    ids = [(name, vocabulary[name]) for name in (_BEGIN, _END)]
    template = TemplateProcessing(single=f"{_BEGIN} $A {_END}", pair=None, special_tokens=ids)
    tokenizer.post_processor = template
    return tokenizer


def _installed() -> Path:
    # importing it takes seconds
    found = find_spec("open_clip")
    for place in (found and found.submodule_search_locations) or ():
        if (path := Path(place) / MERGES).is_file():
            return path
    raise UserError(
        f"CLIP's words are read from OpenAI's {MERGES}: give that file by --merges, or `pip install open_clip_torch`, "
        "which has it."
    )


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).decode()
        # a line that says what it is comes first
        pairs = [(first, second) for first, second in map(str.split, text.split("\n")[1 : _MERGES + 1])]
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as CLIP's merges ({error}); give OpenAI's {MERGES}.") from error
    if len(pairs) < _MERGES:
        raise UserError(f"{path} holds {len(pairs)} merges of CLIP's {_MERGES}; give OpenAI's {MERGES}.")
    return pairs


def _letters() -> list[str]:
    """A printable character for each byte, in the order of their ids: GPT-2's."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, own), *(chr(256 + n) for n in range(256 - len(own)))]
