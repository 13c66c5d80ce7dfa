"""`chameleon-lab coco`."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict

from chameleon_lab.candidates import SimilarityScore
from chameleon_lab.commands.loading import load_model, settings_of
from chameleon_lab.evaluation.coco import PAPER_FID, ZeroShot, coco_captions, zero_shot
from chameleon_lab.retrieval.bank import Bank
from chameleon_lab.retrieval.encoders import ClipEncoder, Encoder, TwoTower
from chameleon_lab.retrieval.retriever import Retriever
from chameleon_lab.retrieval.rules import LOOKUP
from chameleon_lab.storage import write_file
from chameleon_lab.tokenizers.networks import inception

log = logging.getLogger(__name__)


def coco_command(options: argparse.Namespace) -> None:
    """FID of pictures drawn for COCO's captions, with so many documents retrieved for each."""
    protocol = ZeroShot(options.tries, options.seed, options.template, not options.pairs)
    pairs = coco_captions(options.data, options.n, options.seed)
    network = inception()
    encoder = _encoder(options) if options.encoder else None
    if encoder is None and (options.tries > 1 or any(options.documents)):
        raise ValueError(
            "To rank several pictures, and to look documents up, an encoder of words and pictures is needed: give "
            "--encoder, a folder of CLIP in transformers' layout (openai/clip-vit-base-patch32 is the paper's), or a "
            "two-tower encoder of the lab's; or --tries 1 --documents 0."
        )
    lab = load_model(options)
    lab.settings = lab.settings.changed(**settings_of(options))
    retriever = None
    if any(options.documents) and encoder is not None:
        if options.bank is None:
            raise ValueError(
                "--documents other than 0 need --bank, a folder that Bank.of(pictures, encoder).save(BANK) wrote: of "
                "other pictures than are drawn here."
            )
        retriever = Retriever(lab, Bank.load(options.bank), encoder, LOOKUP)
    scorer = SimilarityScore(encoder) if encoder is not None and options.tries > 1 else None
    values = []
    for count, value in zero_shot(lab, pairs, options.out, options.documents, retriever, scorer, network, protocol):
        paper = f"; the paper's 7B, by its own programs: {PAPER_FID[count]}" if count in PAPER_FID else ""
        log.info("%d document(s) retrieved: FID %.2f (n = %s%s)", count, value.value, f"{value.card.n:,}", paper)
        values.append({"documents": count, **asdict(value)})
        write_file(options.out / "fid.json", json.dumps(values, indent=2) + "\n")


def _encoder(options: argparse.Namespace) -> Encoder:
    """CLIP, or a small encoder of the lab's own format."""
    small = (options.encoder / "encoder.safetensors").is_file()
    return TwoTower.load(options.encoder) if small else ClipEncoder(options.encoder)
