"""Where a training's weights come from: a model's folder, a shipped model's name, or the model itself."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
import xxhash

from chameleon_lab.by_modality import dense_names
from chameleon_lab.chameleon import Chameleon, find
from chameleon_lab.checkpoints.adapters import base_names
from chameleon_lab.checkpoints.tensors import visible_files
from chameleon_lab.checkpoints.text_files import names_of
from chameleon_lab.corpora.shards import identities
from chameleon_lab.generation.weights import weights_digest
from chameleon_lab.stability import Dropout
from chameleon_lab.training.data import Corpus
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Vocabulary

log = logging.getLogger(__name__)

WeightSource = str | Path | Chameleon | Transformer

WEIGHT_ENDINGS = frozenset({".safetensors", ".bin", ".pth", ".pt", ".ckpt"})
SHAPE_FIELDS = (
    *("vocabulary", "width", "layers", "heads", "kv_heads", "head_width", "ffn_width"),
    *("rope_theta", "norm_eps", "tied"),
)
"""What of a config the weights were trained with and mean nothing without; how long the context is, is free."""

_digests: dict[tuple[tuple[str, int, int], ...], str] = {}
"""By (path, size, time of writing) of the files that were read, since one training asks several times."""


def require_source(source: object, draws: bool = False) -> None:
    """Raises ValueError for what no training begins from; one that `draws` needs a model with its tokenizers."""
    if isinstance(source, str | Path | Chameleon) or (not draws and isinstance(source, Transformer | None)):
        return
    kinds = "a model's folder, a shipped model's name or a Chameleon" + ("" if draws else ", or a Transformer")
    raise ValueError(f"A training begins from {kinds}, and not from what is of type {type(source).__name__}.")


def weights_identity(source: WeightSource | None) -> dict[str, str] | None:
    """A source as plain values: its name and eight letters of its weights' content, so that other weights in the same
    folder are another training. Raises FileNotFoundError for a folder without weights."""
    match source:
        case None:
            return None
        case Chameleon() | Transformer():
            model = source.model if isinstance(source, Chameleon) else source
            content = xxhash.xxh3_64_hexdigest(weights_digest(model))
        case _:
            content = _content_of(find(source))
    return {"source": str(source) if isinstance(source, str | Path) else type(source).__name__, "weights": content[:8]}


def _content_of(place: Path) -> str:
    files = [place] if place.is_file() else visible_files(place) if place.is_dir() else []
    files = sorted(file for file in files if file.suffix in WEIGHT_ENDINGS)
    if not files:
        raise FileNotFoundError(
            f"A training is to begin from {place}, where no weights are: give the folder of a model, as `lab.save` "
            "wrote it, or the name of a shipped one."
        )
    key = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    if key not in _digests:
        digest = xxhash.xxh3_64()
        for file in files:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                while chunk := stream.read(2**24):
                    digest.update(chunk)
        _digests[key] = digest.hexdigest()
    return _digests[key]


def begin(model: Transformer, source: WeightSource, corpus: Corpus) -> None:
    """Copies the weights of a source into a model of its shape; dropout and context may be others.

    Towers of `by_modality` each begin as the one part that a model without towers has. A vocabulary that has the
    source's and further pieces of text behind it is a grown one: the new rows of embedding and head begin as the mean
    of the pieces' that are there, so that no new one is likelier than a known word. Raises ValueError where a weight
    is missing or over, for another shape, and for tokenizers that are not those of the data, since the same tokens
    would mean other things; FileNotFoundError for what is no model folder.
    """
    name = str(source) if isinstance(source, str | Path) else f"the {type(source).__name__}"
    if isinstance(source, str | Path):
        with torch.random.fork_rng(devices=[]):  # reading a model draws no numbers of the training's
            source = Chameleon.load(source, device="cpu", fixes=tuple({type(fix) for fix in model.config.fixes}))
    before = source.model if isinstance(source, Chameleon) else source
    grown = isinstance(source, Chameleon) and grows(source.vocabulary, corpus.vocabulary)
    alike = [field for field in SHAPE_FIELDS if not (grown and field == "vocabulary")]
    pairs = {field: (getattr(before.config, field), getattr(model.config, field)) for field in alike}
    if apart := [f"{field} {there} there, {here} here" for field, (there, here) in pairs.items() if there != here]:
        raise ValueError(
            f"A training cannot begin from {name}, a model of another shape: {'; '.join(apart)}. "
            "replace(experiment, model=lab.model.config) gives the experiment its shape, and its data needs that "
            "model's tokenizers."
        )
    if isinstance(source, Chameleon):
        _check_tokenizers(name, source, corpus)
    state, own, names = dict(before.state_dict()), model.state_dict(), base_names(model)
    own = {name: own[names[name]] for name in names}  # an adapter of the model's begins as it is
    state |= {
        inner: state[dense] for inner, dense in dense_names(model).items() if inner not in state and dense in state
    }
    if isinstance(source, Chameleon) and grown:
        first, size = source.vocabulary.first_text, model.config.vocabulary
        for key in ("embedding.weight", "head.weight"):
            if key in state:
                state[key] = _grown_rows(state[key], first, size)
    missing, over = (
        sorted(own.keys() - state.keys()),
        sorted(state.keys() - own.keys() - set(dense_names(model).values())),
    )
    if missing or over or any(state[key].shape != own[key].shape for key in own):
        raise ValueError(
            f"A training cannot begin from {name}, whose fixes are {list(before.config.fixes)} where this experiment "
            f"has {list(model.config.fixes)}: {', '.join(missing[:3]) or 'nothing'} is missing there, "
            f"{', '.join(over[:3]) or 'nothing'} has no place here. Give the experiment the same fixes."
        )
    fixes = [[fix for fix in each.config.fixes if not isinstance(fix, Dropout)] for each in (before, model)]
    if fixes[0] != fixes[1]:
        log.warning("%s was trained with %s, and goes on with %s.", name, *fixes)
    model.load_state_dict({names[key]: state[key] for key in own}, strict=False)


def grows(before: Vocabulary, after: Vocabulary) -> bool:
    """Whether a vocabulary is another one with further pieces of text behind it."""
    return after.size > before.size and replace(before, size=after.size) == after


def _grown_rows(rows_VD: torch.Tensor, first_text: int, size: int) -> torch.Tensor:
    """Rows of a table, and new ones, each the mean of those of pieces of text."""
    mean_D = rows_VD[first_text:].float().mean(0).to(rows_VD.dtype)
    return torch.cat([rows_VD, mean_D.expand(size - len(rows_VD), -1)])


def _check_tokenizers(name: str, lab: Chameleon, corpus: Corpus) -> None:
    grown = grows(lab.vocabulary, corpus.vocabulary)
    apart = [] if grown or lab.vocabulary == corpus.vocabulary else ["vocabularies"]
    tokenizer = corpus.tokenizer()
    if grown and tokenizer is not None and lab.tokenizer.can_spell and tokenizer.can_spell:
        theirs, ours = (list(names_of(each.vocabulary, each.text)) for each in (lab.tokenizer, tokenizer))
        apart = ["text tokenizers"] if theirs != ours[: len(theirs)] else []
    if tokenizer is not None and not apart:
        theirs, ours = identities(lab.tokenizer), identities(tokenizer)
        if grown:
            theirs, ours = ({kind: each[kind] for kind in each if kind != "text"} for each in (theirs, ours))
        both = [kind for kind in ours if "none" not in (theirs[kind], ours[kind])]
        apart = [f"{kind} tokenizers" for kind in both if theirs[kind] != ours[kind]]
    if apart:
        raise ValueError(
            f"A training cannot begin from {name} on this data: their {' and '.join(apart)} differ, so that the same "
            f"tokens mean other things. Write the data with that model's tokenizers: Scenes(tokenizer={name!r}), or "
            "shards written with them."
        )
