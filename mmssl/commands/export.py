"""A model in the form of another library, or as a program."""

from __future__ import annotations

import json
from pathlib import Path

from mmssl.data.vocabulary import Vocabulary, tokenizer_beside
from mmssl.encoder import Encoder
from mmssl.errors import UserError, as_text
from mmssl.interop import Form, read_config
from mmssl.objectives import Objective, load
from mmssl.program import PROGRAMS, ProgramForm, interface, is_program
from mmssl.report.card import card, leave_card
from mmssl.training.run_folder import model_in


def export(model: Path, out: Path | None, to: str) -> None:
    """Write a model for another library, or as a program; `to` is one of the forms it has, or "list" for a list of
    them."""
    folder = model_in(model)
    method: Objective | None = None
    missing = ""
    try:
        method = load(folder)
        encoder = method.encoder
    except UserError as error:  # an encoder alone; that of a method whose class is not found can be written, too
        encoder = Encoder.from_pretrained(folder)
        missing = f" ({error})" if read_config(folder).get("mmssl") not in (None, "Encoder") else ""
    models: list[Encoder | Objective] = [encoder] if method is None else [encoder, method]
    forms = {name: (form, each) for each in models for name, form in each.forms.items()}
    programs = PROGRAMS if is_program(encoder) else {}
    if to == "list":
        told = {name: form.what for name, (form, _) in forms.items()}
        told |= {name: form.what for name, form in programs.items()}
        width = max(map(len, told), default=0)
        print(*(f"{name:<{width}}  {what}" for name, what in told.items()), sep="\n")
        return
    if to not in forms and to not in programs:
        names = ", ".join([*forms, *programs])
        others = f"only {names}" if names else "nor anything else that mmssl writes"
        raise UserError(f"{model}: cannot become {to!r}, {others}{missing}")
    if out is None:
        raise UserError("give --out DIR, the folder to write")
    whole: Encoder | Objective = encoder
    if to in programs:
        programs[to].write(encoder, out)
        library, lines = programs[to].library, _program_lines(programs[to], encoder, out)
    else:
        form, whole = forms[to]
        whole.save_as(form, out)
        if (words := tokenizer_beside(folder)) is not None:
            Vocabulary.read(words).save(out)
        library, lines = form.library, _lines(form, out)
    leave_card(out, card(whole, method, folder, lines, library))
    print(*lines, sep="\n")


def _lines(form: Form, out: Path) -> list[str]:
    """How a folder in another library's form is loaded."""
    place = as_text(str(out))
    if form.library == "open_clip":
        return ["import open_clip", f"model = open_clip.create_model({f'local-dir:{place}'!r})"]
    if form.library == "timm":
        return ["import timm", f"model = timm.create_model({f'local-dir:{place}'!r}, pretrained=True)"]
    name = json.loads((out / "config.json").read_text())["architectures"][0]
    return ["import transformers", f"model = transformers.{name}.from_pretrained({place!r})"]


def _program_lines(form: ProgramForm, encoder: Encoder, out: Path) -> list[str]:
    """How a program is loaded, and called in a comment."""
    place, inside = as_text(str(out / form.file)), interface(encoder)
    reads = f"{inside.name}: float32 [B, {', '.join(map(str, inside.size))}], {inside.values}"
    if form.library == "onnx":
        call = f"({inside.out},) = model.run(None, {{{inside.name!r}: {inside.name}}})"
        return ["import onnxruntime", f"model = onnxruntime.InferenceSession({place!r})", f"# {call}  # {reads}"]
    call = f"{inside.out} = model({inside.name})"
    return ["import torch", f"model = torch.export.load({place!r}).module()", f"# {call}  # {reads}"]
