"""A model in the form of another library."""

from __future__ import annotations

import json
from pathlib import Path

from mmssl.data.vocabulary import Vocabulary, tokenizer_beside
from mmssl.encoder import Encoder
from mmssl.errors import UserError, as_text
from mmssl.interop import read_config
from mmssl.objectives import Objective, load
from mmssl.training.run_folder import model_in


def export(model: Path, out: Path | None, to: str) -> None:
    """Write a model for another library; `to` is one of the forms it has, or "list" for a list of them."""
    folder = model_in(model)
    models: list[Encoder | Objective]
    missing = ""
    try:
        method = load(folder)
        models = [method.encoder, method]
    except UserError as error:  # an encoder alone; that of a method whose class is not found can be written, too
        models = [Encoder.from_pretrained(folder)]
        missing = f" ({error})" if read_config(folder).get("mmssl") not in (None, "Encoder") else ""
    forms = {name: (form, each) for each in models for name, form in each.forms.items()}
    if to == "list":
        width = max(map(len, forms), default=0)
        print(*(f"{name:<{width}}  {form.what}" for name, (form, _) in forms.items()), sep="\n")
        return
    if to not in forms:
        others = f"only {', '.join(forms)}" if forms else "nor anything else that mmssl writes"
        raise UserError(f"{model}: cannot become {to!r}, {others}{missing}")
    if out is None:
        raise UserError("give --out DIR, the folder to write")
    form, whole = forms[to]
    whole.save_as(form, out)
    if (words := tokenizer_beside(folder)) is not None:
        Vocabulary.read(words).save(out)
    place = as_text(str(out))
    if form.library == "open_clip":
        print(f"import open_clip\nmodel = open_clip.create_model({f'local-dir:{place}'!r})")
    elif form.library == "timm":
        print(f"import timm\nmodel = timm.create_model({f'local-dir:{place}'!r}, pretrained=True)")
    else:
        name = json.loads((out / "config.json").read_text())["architectures"][0]
        print(f"import transformers\nmodel = transformers.{name}.from_pretrained({place!r})")
