"""Every form that mmssl reads or writes, found by method and library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mmssl.errors import UserError
from mmssl.interop import audiomae, beit, bert, clip, mae, multimae, siammae, siglip, videomae, vit
from mmssl.interop.folder import save_folder
from mmssl.interop.forms import Form, Library, Settings
from mmssl.interop.rules import State, to_theirs

# The first that matches is taken: the authors' ViT, which any file might be, comes behind what is told apart.
FORMS: tuple[Form, ...] = (
    *videomae.FORMS,
    *audiomae.FORMS,
    *bert.FORMS,
    *clip.FORMS,
    *multimae.FORMS,
    *beit.FORMS,
    *vit.FORMS,
    *mae.FORMS,
    *siammae.FORMS,
    *siglip.FORMS,
)


def form_read(
    methods: Sequence[str], libraries: Sequence[Library], config: Mapping[str, Any], state: State, source: str
) -> Form:
    """How one of `methods` (a class's name, then those it derives from) in these libraries reads this config and these
    tensors. Raises UserError where none does."""
    known = _of(methods, libraries)
    for form in known:
        if form.matches(config, state):
            return form
    names = " or ".join(libraries)
    if not known:
        raise UserError(f"{source}: not a folder of mmssl, and of {names} it knows no {methods[0]}")
    reads = f"{methods[0]} reads {', '.join(dict.fromkeys(form.what for form in known))}"
    if not config:
        raise UserError(f"{source}: holds tensors of another model; {reads}")
    holds = config.get("architectures") or f"model type {config.get('model_type')!r}"
    others = [form.method for form in FORMS if form.library != "official" and form.matches(config, state)]
    remedy = f"; {others[0]}.from_pretrained reads it" if others else ""
    raise UserError(f"{source}: holds {holds}; {reads}{remedy}")


def forms_of(methods: Sequence[str], settings: Settings) -> dict[str, Form]:
    """What a model of these `methods` can be written as, by the names of `mmssl export --to`."""
    known = [form for form in FORMS if form.method in methods and form.write and form.media == _media(settings)]
    return {form.name: form for form in known if form.fits(settings)}


def _others(library: Library, settings: Settings) -> str:
    """Why a library that has models of a modality has none that a model of these settings could be written as."""
    media, classes = _media(settings), _encoder(settings)["classes"]
    if library == "transformers" and media == "audio":
        return ": its ASTModel has another geometry, mel x time, in patches that overlap"
    if library == "transformers" and media == "image" and classes:
        return ": its classifiers read the class token (ViT), or the normalised mean of square pictures' patches (BEiT)"
    if library == "transformers" and media == "text" and classes:
        return ": its classifiers read the first token, through a layer of tanh (pooler)"
    return ""


def form_of(forms: Mapping[str, Form], library: Library, what: str, settings: Settings, remedy: str = "") -> Form:
    """The one of these forms that is this library's; UserError, which ends in `remedy`, where there is none for `what`,
    of these settings."""
    for form in forms.values():
        if form.library == library:
            return form
    others = _others(library, settings)
    raise UserError(f"{library} has nothing that {what} could be written as{others}{remedy}")


def save_as(form: Form, settings: Settings, state: Mapping[str, Tensor], folder: str | Path) -> Path:
    """Write a model of these settings and tensors as a folder of this form."""
    assert form.write is not None
    written, patch = form.write(settings), _encoder(settings)["tokenizers"][0]["modality"]["patch"]
    tensors = {**to_theirs(state, written.rules, patch), **written.extra}
    return save_folder(folder, written.config, tensors, written.processor, written.name)


def _of(methods: Sequence[str], libraries: Sequence[Library]) -> list[Form]:
    """The forms of these methods in these libraries."""
    return [form for name in methods for form in FORMS if form.method == name and form.library in libraries]


def _encoder(settings: Settings) -> Settings:
    """The encoder's settings among a method's, or those themselves."""
    return settings.get("encoder", settings)


def _media(settings: Settings) -> str:
    return _encoder(settings)["tokenizers"][0]["modality"]["name"]
