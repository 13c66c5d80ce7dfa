"""What the stream holds on its way: the logit lens for words, and for pictures the picture lens."""

from __future__ import annotations

import numpy as np
import PIL.Image
import torch

from chameleon_lab.inspection.likelihood import Likelihood, likeliest
from chameleon_lab.inspection.trace import LOGITS_AT_ONCE


class Lens(Likelihood):
    """A document read at any depth: the stream after a block, put through the last norm and the head."""

    def stream(self, layer: int) -> np.ndarray:
        """The residual stream after block `layer`: positions x width, float32."""
        self.require(layer=layer)
        return self.streams[layer + 1].float().cpu().numpy()

    @torch.inference_mode()
    def lens(self, layer: int, positions: slice = slice(None)) -> np.ndarray:
        """The logit lens: the stream after block `layer` read through the last norm and the head: logits_TV, float32.

        The last layer's are the model's own logits. Those at a position are about the token *after* it. (nostalgebraist
        2020.)
        """
        self.require(layer=layer)
        return self.model.logits(self.model.norm(self.streams[layer + 1][positions])).cpu().numpy()

    @torch.inference_mode()
    def lens_alternatives(self, position: int, k: int = 5) -> list[list[tuple[int, float]]]:
        """`alternatives` at a position as each layer has them, from the first to the last: a list for each layer."""
        self.require(position, 1)
        streams_LD = torch.stack([stream_TD[position - 1] for stream_TD in self.streams[1:]])
        return [likeliest(logits_V.softmax(-1), k) for logits_V in self.model.logits(self.model.norm(streams_LD))]

    @torch.inference_mode()
    def codes(self, layer: int, image: int = 0) -> np.ndarray:
        """The likeliest code in each cell of an image, as the stream after block `layer` has it: rows x columns.

        Cells of an image under way that are not drawn yet are filled up (`whole`).
        """
        self.require(layer=layer)
        vocabulary = self.tokenizer.vocabulary
        before_N = torch.as_tensor(self.cells(image) - 1, device=self.device)
        ids_N = vocabulary.tokens_of_codes(np.arange(vocabulary.codes))
        streams_ND = self.model.norm(self.streams[layer + 1][before_N])
        best_N = [
            self.model.logits(part_ND)[:, ids_N].argmax(-1).cpu().numpy()
            for part_ND in streams_ND.split(LOGITS_AT_ONCE)
        ]
        return self.whole(np.concatenate(best_N), image)

    def picture(self, layer: int, image: int = 0) -> PIL.Image.Image:
        """The picture lens: an image of the document as the stream after block `layer` would draw it.

        Each cell is the likeliest code there, given the document's own tokens before it. Raises what the image
        tokenizer raises where it cannot draw.
        """
        return self.tokenizer.image.decode(self.codes(layer, image))
