"""Inspection: what a model saw and thought at every token of a document, computed when it is asked for.

```python
look = lab.inspect(Document.of("draw a red circle", EndTurn()) + reply)
look.alternatives(26)  # what could have stood there
look.attention(3, 0, 26)  # where layer 3's head 0 looked from there
look.picture(2)  # the picture as the stream after block 2 would draw it
look.without(5, of=26)  # what knocking token 5 out does to token 26
```

What is kept is the residual stream, one vector a position and layer: never positions x positions x heads x layers. An
attention row comes from running one block again. Raw attention says where a head looked and not what mattered:
`without` and `cut` change what can be seen and measure the effect.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from chameleon_lab.attention import SOFTMAX, UNCAPPED, attention
from chameleon_lab.generation.guidance import Guidance
from chameleon_lab.quantization import QuantizedLinear
from chameleon_lab.readings import AttentionShares, Contribution, TokenReading
from chameleon_lab.stability.slots import Scale
from chameleon_lab.taps import change
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.transformer import CAUSAL, Block, Context, ModelConfig, Packed, Transformer
from chameleon_lab.vocabulary import Modality

LOGITS_AT_ONCE = 256  # positions whose logits are held at once
EDGES_AT_ONCE = 2**22  # edges of all knock-outs in one forward pass
WEIGHTS_AT_ONCE = 2**24  # attention weights held at once
BLOCK_BYTES = 2**26  # of queries, keys and values of blocks run again that are kept for the next question
MEAN_BYTES = 2**27  # of weights averaged over heads, kept where those of all layers are no more than this


class HeadValues(NamedTuple):
    """Rotated queries, and keys and values with a copy for each query head that shares them: H x T x K each."""

    q_HTK: Tensor
    k_HTK: Tensor
    v_HTK: Tensor


class Inspection:
    """One document as a model holds it. Positions count from 0, layers and heads too; what is returned is numpy's.

    `changes` are functions of submodules' outputs, by name, under which the model is looked at (see `taps.change`);
    `guide` is the guidance with which pictures were drawn; `documents_T` numbers the documents of a packed row. Raises
    ValueError for a document beyond the model's context.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: MixedModalTokenizer,
        tokens: Sequence[int] | np.ndarray,
        *,
        guide: Guidance | None = None,
        documents_T: np.ndarray | None = None,
        changes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.guide, self.changes = model, tokenizer, guide, dict(changes or {})
        self.tokens = tokenizer.vocabulary.check(tokens)
        if not 0 < len(self.tokens) <= model.config.context:
            raise ValueError(
                f"A document of {len(self.tokens)} tokens cannot be inspected: it needs 1 to {model.config.context}."
            )
        device = model.embedding.weight.device
        self._tokens_1T = torch.as_tensor(self.tokens, device=device)[None]
        self._documents_1T = None if documents_T is None else torch.as_tensor(documents_T, device=device)[None]
        self._context: Context = CAUSAL if self._documents_1T is None else Packed(self._documents_1T)
        self._blocks: OrderedDict[int, HeadValues] = OrderedDict()
        self._means: dict[int, Tensor] = {}
        self._streams: list[Tensor] = []  # T x D each: the input of the first block, then each block's output
        names = ["embedding_norm", *(f"blocks.{layer}" for layer in range(model.config.layers))]
        with torch.inference_mode(), self._changed(), _outputs(model, names) as outputs:
            self._outputs_TD = model.trunk(self._tokens_1T, self._context)[0]
            self._streams = [outputs[name][0] for name in names]
        self._measure()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> tuple[int, int]:
        """Layers, and heads in each."""
        return self.model.config.layers, self.model.config.heads

    @property
    def quantized(self) -> bool:
        """Whether the model's matrices are packed: it then has no gradients, and its products are rounded."""
        return any(isinstance(module, QuantizedLinear) for module in self.model.modules())

    # What was held likely

    @torch.inference_mode()
    def _measure(self) -> None:
        """Log-probability, rank and entropy of each token after those before it; nan and -1 for the first."""
        self.log_probabilities, self.entropies = np.full((2, len(self)), np.nan)
        self.ranks = np.full(len(self), -1)
        for start in range(0, len(self) - 1, LOGITS_AT_ONCE):
            logs_TV = self._logits(self._outputs_TD[start : min(start + LOGITS_AT_ONCE, len(self) - 1)]).log_softmax(-1)
            here = slice(start + 1, start + 1 + len(logs_TV))
            own_T1 = logs_TV.gather(-1, self._tokens_1T[0, here, None])
            self.log_probabilities[here] = own_T1[:, 0].double().cpu().numpy()
            self.ranks[here] = (logs_TV > own_T1).sum(-1).cpu().numpy()
            self.entropies[here] = torch.special.entr(logs_TV.exp()).sum(-1).double().cpu().numpy()

    @property
    def readings(self) -> list[TokenReading]:
        """All tokens as plain values. As a table: `pandas.DataFrame([vars(each) for each in look.readings])`."""
        readings, image, code = list[TokenReading](), -1, 0
        vocabulary, grids = self.tokenizer.vocabulary, self._grids
        for position, (token, modality) in enumerate(zip(self.tokens.tolist(), self.modalities, strict=True)):
            if token == vocabulary.begin_image:
                image, code = image + 1, 0
            reading = TokenReading(position, token, Modality(int(modality)), self.words(token))
            if position:
                measured = (
                    float(self.log_probabilities[position]),
                    int(self.ranks[position]),
                    float(self.entropies[position]),
                )
                reading = replace(reading, log_probability=measured[0], rank=measured[1], entropy=measured[2])
            if modality == Modality.IMAGE:
                row, column = divmod(code, grids[image][1])
                reading, code = replace(reading, image=image, row=row, column=column), code + 1
            readings.append(reading)
        return readings

    @property
    def modalities(self) -> np.ndarray:
        """The `Modality` of each token."""
        return self.tokenizer.vocabulary.modality[self.tokens]

    def words(self, token: int) -> str:
        """A token in words: its piece of text, "code 22", or what kind of special token it is."""
        vocabulary = self.tokenizer.vocabulary
        match Modality(int(vocabulary.modality[token])):
            case Modality.TEXT:
                return self.tokenizer.text.decode([int(token) - vocabulary.first_text])
            case Modality.IMAGE:
                return f"code {int(vocabulary.codes_of_tokens(np.array(token)))}"
        return next((name for name in SPECIALS if getattr(vocabulary, name) == token), f"special {token}")

    def swatch(self, token: int, position: int) -> PIL.Image.Image | None:
        """What a code would look like at a position: its image drawn with it, cut out; None for what is no code.

        Where no whole image has a cell there, it is two rows of two of the code.
        """
        vocabulary = self.tokenizer.vocabulary
        if vocabulary.modality[token] != Modality.IMAGE:
            return None
        code = vocabulary.codes_of_tokens(np.array(token))
        image = int((self.tokens[:position] == vocabulary.begin_image).sum()) - 1
        try:
            places = self._places(image)
        except ValueError:
            places = np.empty(0, np.int64)
        if position not in places:
            return self.tokenizer.image.decode(np.full((2, 2), code))
        rows, columns = self._grids[image]
        codes_RC = vocabulary.codes_of_tokens(self.tokens[places]).reshape(rows, columns)
        row, column = divmod(int(np.flatnonzero(places == position)[0]), columns)
        codes_RC[row, column] = code
        picture = self.tokenizer.image.decode(codes_RC)
        width, height = picture.width // columns, picture.height // rows
        return picture.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))

    def alternatives(self, position: int, k: int = 5) -> list[tuple[int, float]]:
        """(token, probability) of the `k` likeliest tokens at a position, given all before it, likeliest first."""
        self._require(position, 1)
        with torch.inference_mode():
            shares_V = self._logits(self._outputs_TD[position - 1 : position])[0].softmax(-1)
            top = shares_V.topk(min(k, len(shares_V)))
        return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))

    @torch.inference_mode()
    def guided(self, position: int, k: int = 5) -> list[tuple[int, float, float]]:
        """What guidance did to a cell: (token, probability with it, without it) of the `k` likeliest codes with it.

        Raises ValueError where there is no guidance, and for what is no cell of an image.
        """
        self._require(position, 1)
        if self.guide is None:
            raise ValueError("No guidance: inspect a session that had one, or pass guidance= to inspect.")
        if self.modalities[position] != Modality.IMAGE:
            raise ValueError(
                f"Guidance is for cells of images, and position {position} is {self.words(self.tokens[position])!r}."
            )
        image = int((self.tokens[:position] == self.tokenizer.vocabulary.begin_image).sum()) - 1
        rows, columns = self._grids[image]
        begin = int(np.flatnonzero(self.tokens[:position] == self.tokenizer.vocabulary.begin_image)[-1])
        first = begin + int(np.flatnonzero(self.modalities[begin:] == Modality.IMAGE)[0])
        share = float((self.modalities[first:position] == Modality.IMAGE).sum()) / (rows * columns)
        ids_V = torch.as_tensor(self.tokenizer.vocabulary.tokens_of_codes(np.arange(self.tokenizer.vocabulary.codes)))
        logits = [self._logits(self._outputs_TD[position - 1 : position])[:, ids_V]]
        for stream in self.guide.streams(self.tokens[:first], self.tokenizer):
            tokens_1T = torch.as_tensor(np.concatenate([stream, self.tokens[first:position]]))[None]
            with self._changed():
                outputs_BTD = self.model.trunk(tokens_1T.to(self._tokens_1T.device))
            logits.append(self._logits(outputs_BTD[0, -1:])[:, ids_V])
        with_V = self.guide.mix(torch.stack(logits), [share])[0].softmax(-1)
        without_V, top = logits[0][0].softmax(-1), with_V.topk(min(k, len(ids_V)))
        return [(int(ids_V[at]), float(with_V[at]), float(without_V[at])) for at in top.indices.tolist()]

    # Where it looked

    def attention(self, layer: int, head: int, position: int) -> np.ndarray:
        """The weights of one head over positions 0 to `position`, that are its row of the softmax: 1-D, sum 1."""
        self._require(position, head=head)
        return self.heads(layer, position)[head]

    @torch.inference_mode()
    def heads(self, layer: int, position: int) -> np.ndarray:
        """The rows of all heads of a layer: heads x positions 0 to `position`."""
        self._require(position, layer=layer)
        weights_HTS = self._weights(layer, slice(position, position + 1))
        return weights_HTS[:, 0, : position + 1].float().cpu().numpy()

    @torch.inference_mode()
    def scores(self, layer: int, position: int) -> np.ndarray:
        """What the softmax of each head's row is given: heads x positions 0 to `position`, capped where a fix caps."""
        self._require(position, layer=layer)
        scores_HTS = self._scores(layer, slice(position, position + 1))
        return scores_HTS[:, 0, : position + 1].float().cpu().numpy()

    @torch.inference_mode()
    def readers(self, layer: int, head: int, position: int) -> np.ndarray:
        """How much each token from `position` on read it, by one head: 1-D, of positions `position` to the last."""
        self._require(position, layer=layer, head=head)
        columns = [self._weights(layer, rows)[head, :, position] for rows in self._spans(position)]
        return torch.cat(columns).float().cpu().numpy()

    def shares(self, layer: int, head: int, position: int) -> AttentionShares:
        """How a row of attention falls on words, patches, sinks and other special tokens."""
        row, kinds = self.attention(layer, head, position), self.modalities[: position + 1]
        vocabulary = self.tokenizer.vocabulary
        sinks = np.isin(self.tokens[: position + 1], (vocabulary.begin_document, vocabulary.begin_image))
        words, patches = (float(row[kinds == kind].sum()) for kind in (Modality.TEXT, Modality.IMAGE))
        resting = float(row[sinks].sum())
        return AttentionShares(words, patches, resting, float(row[kinds == Modality.SPECIAL].sum()) - resting)

    @torch.inference_mode()
    def rollout(self, position: int) -> np.ndarray:
        """Attention multiplied through all layers, half of each layer's weight on the stream itself: 1-D, sum 1.

        Abnar & Zuidema 2020 (arXiv 2005.00928), heads averaged.
        """
        self._require(position)
        row_T = torch.zeros(position + 1, device=self._tokens_1T.device)
        row_T[position] = 1
        for layer in reversed(range(self.model.config.layers)):
            read_T = torch.zeros_like(row_T)
            for span in self._spans(0, position + 1):
                read_T += row_T[span] @ self._mean_weights(layer, span)[:, : position + 1]
            row_T = (row_T + read_T) / 2
        return row_T.cpu().numpy()

    @torch.inference_mode()
    def rollout_readers(self, position: int) -> np.ndarray:
        """How much each token from `position` on drew on it through all layers: its column of all rollouts, 1-D."""
        self._require(position)
        column_T = torch.zeros(len(self), device=self._tokens_1T.device)
        column_T[position] = 1
        for layer in range(self.model.config.layers):
            read = [
                self._mean_weights(layer, span)[:, position:] @ column_T[position:] for span in self._spans(position)
            ]
            column_T[position:] = (column_T[position:] + torch.cat(read)) / 2
        return column_T[position:].cpu().numpy()

    def relevance(self, position: int) -> np.ndarray:
        """Attention times the gradient of this token's log-probability, through all layers: 1-D, of all before it.

        Of each row only what speaks for the token counts, heads averaged, and rows are multiplied through the layers
        (Chefer et al. 2021, arXiv 2103.15679). Raises ValueError for a quantised model, which has no gradients.
        """
        self._require(position, 1)
        if self.quantized:
            raise ValueError("A quantised model has no gradients: load it without `weights`, or use `without`.")
        gradients = self._gradients(position)
        relevance_T = torch.zeros(position, device=self._tokens_1T.device)
        relevance_T[position - 1] = 1
        with torch.inference_mode():
            for layer in reversed(range(self.model.config.layers)):
                gradient_HTK = gradients[layer][:position].unflatten(-1, (self.model.config.heads, -1)).transpose(0, 1)
                values_HKT = self._block(layer).v_HTK[:, :position].transpose(1, 2).float()
                read_T = torch.zeros_like(relevance_T)
                for span in self._spans(0, position):
                    slope_HTS = gradient_HTK[:, span].float() @ values_HKT
                    weights_HTS = self._weights(layer, span)[..., :position].float()
                    read_T += relevance_T[span] @ (weights_HTS * slope_HTS).clamp_min(0).mean(0)
                relevance_T = relevance_T + read_T
        return relevance_T.cpu().numpy()

    # What it thought on the way

    def stream(self, layer: int) -> np.ndarray:
        """The residual stream after block `layer`: positions x width, float32."""
        self._require(layer=layer)
        return self._streams[layer + 1].float().cpu().numpy()

    @torch.inference_mode()
    def lens(self, layer: int, positions: slice = slice(None)) -> np.ndarray:
        """The logit lens: the stream after block `layer` read through the last norm and the head: logits_TV, float32.

        The last layer's are the model's own logits. (nostalgebraist 2020.)
        """
        self._require(layer=layer)
        return self._logits(self.model.norm(self._streams[layer + 1][positions])).cpu().numpy()

    @torch.inference_mode()
    def codes(self, layer: int, image: int = 0) -> np.ndarray:
        """The likeliest code in each cell of an image, as the stream after block `layer` has it: rows x columns."""
        self._require(layer=layer)
        places, vocabulary = self._places(image), self.tokenizer.vocabulary
        streams_ND = self.model.norm(self._streams[layer + 1][torch.as_tensor(places - 1)])
        ids_N = vocabulary.tokens_of_codes(np.arange(vocabulary.codes))
        best_N = [
            part[:, ids_N].argmax(-1).cpu().numpy() for part in map(self._logits, streams_ND.split(LOGITS_AT_ONCE))
        ]
        return np.concatenate(best_N).reshape(self._grids[image])

    def picture(self, layer: int, image: int = 0) -> PIL.Image.Image:
        """The picture lens: an image of the document as the stream after block `layer` would draw it.

        Each cell is the likeliest code there, given the document's own tokens before it. Raises what the image
        tokenizer raises where it cannot draw.
        """
        return self.tokenizer.image.decode(self.codes(layer, image))

    def image(self, image: int = 0) -> PIL.Image.Image:
        """An image of the document, decoded from its own codes. Raises ValueError for one that is not whole."""
        codes_N = self.tokenizer.vocabulary.codes_of_tokens(self.tokens[self._places(image)])
        return self.tokenizer.image.decode(codes_N.reshape(self._grids[image]))

    @torch.inference_mode()
    def contributions(self, position: int, token: int | None = None) -> list[Contribution]:
        """Direct logit attribution: what the embedding, each head and each feed-forward add to a token's logit.

        The token is the one that stands at `position` unless given. The last norm's scale is taken as it is, and a cap
        of the head in proportion, so that the contributions sum to the logit. Raises ValueError where a fix makes a
        branch no sum of its heads.
        """
        self._require(position, 1)
        token = int(self.tokens[position]) if token is None else token
        model, at = self.model, position - 1
        mixed: list[Tensor] = []
        fed: list[Tensor] = []

        def keep(parts: list[Tensor]) -> Callable[..., None]:
            return lambda _module, inputs, _output: parts.append(inputs[0][0, at])

        hooks = [block.attention.out.register_forward_hook(keep(mixed)) for block in self._each_block]
        hooks += [block.feed_forward.down.register_forward_hook(keep(fed)) for block in self._each_block]
        try:
            with self._changed():
                model.trunk(self._tokens_1T[:, :position], self._within(position))
        finally:
            for hook in hooks:
                hook.remove()
        parts: list[tuple[str, int | None, int | None, Tensor]] = [("embedding", None, None, self._streams[0][at])]
        for layer, block in enumerate(self._each_block):
            heads_HD = torch.block_diag(*mixed[layer].unflatten(-1, (model.config.heads, -1)))
            heads_HD = _after(block, "attention", block.attention.out(heads_HD))
            parts += [("head", layer, head, part_D) for head, part_D in enumerate(heads_HD)]
            parts.append(
                ("feed_forward", layer, None, _after(block, "ffn", block.feed_forward.down(fed[layer])[None])[0])
            )
        stream_D = self._streams[-1][at].float()
        scale_D = _scaling(model.norm, "the last norm", stream_D)
        head = model.head
        row_D = head.weight[token] if isinstance(head, nn.Linear) else head(torch.eye(len(stream_D)))[:, token]
        weight_D = row_D.float() * scale_D
        logit, plain = self._logits(self._outputs_TD[at : at + 1])[0, token].item(), (stream_D @ weight_D).item()
        share = logit / plain if abs(plain) > 1e-9 and not isinstance(model.cap, nn.Identity) else 1.0
        return [
            Contribution(part, layer, head, float(part_D.float() @ weight_D) * share)
            for part, layer, head, part_D in parts
        ]

    # What changes when something is taken away

    def without(self, position: int, of: int) -> float:
        """The change of the log-probability of the token at `of`, in nats, when no other token can see `position`."""
        return float(self.effects(of, [position])[0])

    @torch.inference_mode()
    def effects(self, of: int, positions: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """`without` for several positions (all before `of` unless given), in batches: changes in nats, 1-D."""
        self._require(of, 1)
        positions = np.arange(of) if positions is None else np.asarray(positions, np.int64)
        for position in positions.tolist():
            self._require(position)
        changes = [np.empty(0)]
        for some in np.split(positions, range(step := max(1, EDGES_AT_ONCE // of**2), len(positions), step)):
            hidden_BTT = torch.zeros((len(some), of, of), dtype=torch.bool, device=self._tokens_1T.device)
            for hidden_TT, position in zip(hidden_BTT, some.tolist(), strict=True):
                if position < of:
                    hidden_TT[:, position] = True
                    hidden_TT[position, position] = False  # a token that sees nothing would be no number
            if len(some):
                changes.append(self._log_probability(of, Edges(hidden_BTT[:, None])) - self.log_probabilities[of])
        return np.concatenate(changes)

    @torch.inference_mode()
    def cut(self, layer: int, head: int, source: int, target: int, of: int) -> float:
        """The change of the log-probability of the token at `of`, in nats, when one head's edge is cut: at `layer`,
        `head` no longer lets the token at `target` see the one at `source`."""
        self._require(source, layer=layer, head=head)
        self._require(of, 1)
        if not source < target < of:
            raise ValueError(
                f"An edge goes from an earlier token to a later one before {of}; not {source} to {target}."
            )
        hidden_1HTT = torch.zeros((1, self.model.config.heads, of, of), dtype=torch.bool, device=self._tokens_1T.device)
        hidden_1HTT[0, head, target, source] = True
        return float(self._log_probability(of, Edges(hidden_1HTT, layer))[0] - self.log_probabilities[of])

    # Parts

    def _log_probability(self, of: int, edges: Edges) -> np.ndarray:
        """Of the token at `of` under each row of `edges`: 1-D, float64."""
        edges.begin(self._within(of), self._documents_1T, of, self._outputs_TD.dtype)
        with self._changed():
            outputs_BTD = self.model.trunk(self._tokens_1T[:, :of].expand(len(edges.hidden), -1), edges)
        logs_BV = self._logits(outputs_BTD[:, -1]).log_softmax(-1)
        return logs_BV[:, self.tokens[of]].double().cpu().numpy()

    def _gradients(self, position: int) -> list[Tensor]:
        """Of the log-probability of the token at `position`, by what each layer's attention mixed: T x D a layer."""
        mixed: list[Tensor] = []
        hooks = [
            block.attention.out.register_forward_pre_hook(lambda _module, inputs: mixed.append(inputs[0]))
            for block in self._each_block
        ]
        gradient_flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            self.model.requires_grad_(False)
            with torch.inference_mode(False), torch.enable_grad(), self._changed():
                tokens_1T = torch.as_tensor(self.tokens[:position], device=self._tokens_1T.device)[None]
                stream = {"embedding_norm": lambda x_BTD: x_BTD.detach().requires_grad_()}
                with change(self.model, stream):
                    outputs_TD = self.model.trunk(tokens_1T, self._within(position))[0]
                log = self._logits(outputs_TD[-1:]).log_softmax(-1)[0, self.tokens[position]]
                return [gradient[0] for gradient in torch.autograd.grad(log, mixed)]
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, flag in gradient_flags:
                parameter.requires_grad_(flag)

    def _within(self, length: int) -> Context:
        return CAUSAL if self._documents_1T is None else Packed(self._documents_1T[:, :length])

    def _logits(self, outputs_TD: Tensor) -> Tensor:
        return self.model.logits(outputs_TD)

    @contextmanager
    def _changed(self) -> Iterator[None]:
        if not self.changes:
            yield
            return
        with change(self.model, self.changes):
            yield

    @property
    def _each_block(self) -> list[Block]:
        return [block for block in self.model.blocks if isinstance(block, Block)]

    def _block(self, layer: int) -> HeadValues:
        """One block's rotated queries, keys and values, from running its attention again."""
        if layer in self._blocks:
            self._blocks.move_to_end(layer)
            return self._blocks[layer]
        block = self._each_block[layer]
        with torch.inference_mode():
            see, inner = _KeepHeads(self._context), block.attention_pre_norm(self._streams[layer][None])
            with self._changed():
                block.attention(inner, self._context.turns(self._tokens_1T, self.model.config), see)
        values = see.values
        size = sum(each.nbytes for each in values)
        while self._blocks and size * (len(self._blocks) + 1) > BLOCK_BYTES:
            self._blocks.popitem(last=False)
        self._blocks[layer] = values
        return values

    def _weights(self, layer: int, rows: slice) -> Tensor:
        """The softmax of some query rows, all heads: H x rows x T, 0 where a query cannot look."""
        return self._each_block[layer].attention.softmax(self._scores(layer, rows))

    def _scores(self, layer: int, rows: slice) -> Tensor:
        """What that softmax is given: H x rows x T, -inf where a query cannot look."""
        q_HTK, k_HTK, _ = self._block(layer)
        attention = self._each_block[layer].attention
        places_T = torch.arange(len(self), device=q_HTK.device)
        hidden_TS = places_T > places_T[rows, None]
        if self._documents_1T is not None:
            hidden_TS |= self._documents_1T[0] != self._documents_1T[0, rows, None]
        scores_HTS = attention.cap(q_HTK[:, rows] @ k_HTK.transpose(1, 2) * q_HTK.shape[-1] ** -0.5)
        return scores_HTS.masked_fill(hidden_TS, -torch.inf)

    def _mean_weights(self, layer: int, rows: slice) -> Tensor:
        """`_weights` averaged over heads: rows x T. Kept, for the next rollout, where those of all layers are few."""
        if 4 * len(self) ** 2 * self.model.config.layers > MEAN_BYTES:
            return self._weights(layer, rows).float().mean(0)
        if layer not in self._means:
            spans = self._spans(0)
            self._means[layer] = torch.cat([self._weights(layer, span).float().mean(0) for span in spans])
        return self._means[layer][rows]

    def _spans(self, start: int, stop: int | None = None) -> Iterator[slice]:
        """Query rows in parts whose weights are held at once."""
        stop, step = (
            len(self) if stop is None else stop,
            max(1, WEIGHTS_AT_ONCE // (len(self) * self.model.config.heads)),
        )
        yield from (slice(begin, min(begin + step, stop)) for begin in range(start, stop, step))

    @property
    def _grids(self) -> list[tuple[int, int]]:
        """(rows, columns) of each image of the document; of one under way, what its grid will be."""
        form, grids = self.tokenizer.form, list[tuple[int, int]]()
        for begin in np.flatnonzero(self.tokens == self.tokenizer.vocabulary.begin_image).tolist():
            sides = form.sides
            for place, token in enumerate(self.tokens[begin + 1 : begin + 3].tolist()):
                sides = form.advance(place, sides, token)
            grids.append((sides[0], sides[1]) if len(sides) == 2 else self.tokenizer.grid)
        return grids

    def _places(self, image: int) -> np.ndarray:
        """The positions of an image's codes. Raises ValueError for an image that is not there, or not whole."""
        begins = np.flatnonzero(self.tokens == self.tokenizer.vocabulary.begin_image)
        if not 0 <= image < len(begins):
            raise ValueError(f"There is no image {image}: this document has {len(begins)}.")
        stop = begins[image + 1] if image + 1 < len(begins) else len(self)
        places = begins[image] + np.flatnonzero(self.modalities[begins[image] : stop] == Modality.IMAGE)
        rows, columns = self._grids[image]
        if len(places) != rows * columns:
            raise ValueError(f"Image {image} has {len(places)} of its {rows * columns} codes: it is not whole.")
        return places

    def _require(
        self, position: int | None = None, least: int = 0, *, layer: int | None = None, head: int | None = None
    ) -> None:
        """Raises ValueError for what is not there."""
        config = self.model.config
        for name, value, low, count in (
            ("position", position, least, len(self)),
            ("layer", layer, 0, config.layers),
            ("head", head, 0, config.heads),
        ):
            if value is not None and not low <= value < count:
                why = " (nothing comes before the first token)" if name == "position" and value == 0 and low else ""
                raise ValueError(f"{name} lies in {low}..{count - 1}, not at {value}{why}.")


SPECIALS = ("begin_document", "pad", "end_document", "begin_image", "end_image", "end_turn", "new_line")


class Edges:
    """A context in which some edges are cut: `hidden` (rows, 1 or heads, T, T) is true where a query may not look, in
    one layer or in all. `begin` gives it the context that it narrows."""

    def __init__(self, hidden: Tensor, layer: int | None = None) -> None:
        self.hidden, self.layer = hidden, layer

    def begin(self, context: Context, documents_1T: Tensor | None, length: int, dtype: torch.dtype) -> None:
        places_T = torch.arange(length, device=self.hidden.device)
        beyond_TT = places_T > places_T[:, None]
        if documents_1T is not None:
            beyond_TT |= documents_1T[0, :length] != documents_1T[0, :length, None]
        self._context = context
        self._mask_TT = torch.zeros(beyond_TT.shape, dtype=dtype, device=beyond_TT.device).masked_fill_(
            beyond_TT, -torch.inf
        )

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        return self._context.turns(tokens_BT, config)

    def attend(
        self,
        layer: int,
        q_BHTK: Tensor,
        k_BHTK: Tensor,
        v_BHTK: Tensor,
        cap: nn.Module = UNCAPPED,
        softmax: nn.Module = SOFTMAX,
    ) -> Tensor:
        mask = self._mask_TT
        if self.layer is None or layer == self.layer:
            mask = mask.masked_fill(self.hidden, -torch.inf)
        return attention(q_BHTK, k_BHTK, v_BHTK, mask, cap, softmax)


class _KeepHeads:
    """A context that keeps the queries, keys and values that it is asked about."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def turns(self, tokens_BT: Tensor, config: ModelConfig) -> Tensor:
        return self.context.turns(tokens_BT, config)

    def attend(
        self,
        layer: int,
        q_BHTK: Tensor,
        k_BHTK: Tensor,
        v_BHTK: Tensor,
        cap: nn.Module = UNCAPPED,
        softmax: nn.Module = SOFTMAX,
    ) -> Tensor:
        shared = q_BHTK.shape[1] // k_BHTK.shape[1]
        self.values = HeadValues(q_BHTK[0], *(each[0].repeat_interleave(shared, 0) for each in (k_BHTK, v_BHTK)))
        return v_BHTK.repeat_interleave(shared, 1)


def add(direction_D: Tensor | np.ndarray, positions: slice = slice(None)) -> Callable[[Tensor], Tensor]:
    """A change of a stream: a direction added at some positions. `{"blocks.3": add(direction)}` steers block 3."""
    added_D = torch.as_tensor(direction_D)

    def changed(x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD.clone()
        x_BTD[:, positions] += added_D.to(x_BTD)
        return x_BTD

    return changed


def put(stream_TD: Tensor | np.ndarray, positions: Mapping[int, int]) -> Callable[[Tensor], Tensor]:
    """A change of a stream, activation patching: `positions[here] = there`, a place in another document's stream."""
    others_TD = torch.as_tensor(stream_TD)

    def changed(x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD.clone()
        for here, there in positions.items():
            if here < x_BTD.shape[1]:
                x_BTD[:, here] = others_TD[there].to(x_BTD)
        return x_BTD

    return changed


@contextmanager
def _outputs(model: Transformer, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of submodules by name. (To `taps.record`, `blocks.*` would be every part of a block as well.)"""
    outputs: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: outputs.update({name: output})
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _after(block: Block, branch: str, parts_ND: Tensor) -> Tensor:
    """Parts of a branch as they join the stream, after its norm and scale: those of the whole branch, for all."""
    for slot in ("post_norm", "scale", "dropout"):
        module = block.get_submodule(f"{branch}_{slot}")
        parts_ND = parts_ND * _scaling(module, f"{branch}_{slot}", parts_ND.sum(0))
    return parts_ND


def _scaling(module: nn.Module, slot: str, x_D: Tensor) -> Tensor:
    """The weights with which a module multiplies this input. Raises ValueError for one that does anything else."""
    if isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and not module.training):
        return torch.ones_like(x_D)
    if isinstance(module, Scale):
        return module.weight_D
    if isinstance(module, nn.RMSNorm):
        eps = torch.finfo(x_D.dtype).eps if module.eps is None else module.eps
        scale = (x_D.float().square().mean() + eps).rsqrt()
        return scale * (module.weight if module.weight is not None else 1)
    raise ValueError(
        f"{slot} holds a {type(module).__name__}, which is no multiplication: what heads add to a logit cannot be told "
        "apart behind it. `without` and `cut` measure effects whatever the model is made of."
    )
