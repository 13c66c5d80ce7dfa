"""A walk through a model: one document, a token at a time, with all that decides the next one laid open.

```python
walk = lab.walk(Document.of("draw a red circle", EndTurn()), seed=7)
walk.next.logits_SV  # what the model says of every token of its vocabulary
walk.next.reasons  # why the grammar lets some of them not come
walk.step()  # the token that `lab.stream` writes with the same seed; `back` takes it off again
```

It decodes slowly and forgets nothing: each step is an `Inspection` of the document so far, and another of what each
guidance twin sees. `Continuation` is the quick one, and a test holds the two to the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chameleon_lab.documents import Document
from chameleon_lab.generation.grammar import Grammar, Rules, State
from chameleon_lab.generation.guidance import Guidance, ThreeWay, TwoWay
from chameleon_lab.generation.settings import Settings
from chameleon_lab.inspection import Inspection
from chameleon_lab.parts import plain_number
from chameleon_lab.readings import NextToken
from chameleon_lab.tokenizers.grids import SlotKind
from chameleon_lab.tokenizers.mixed import MixedModalTokenizer
from chameleon_lab.tokenizers.preparation import picture_of
from chameleon_lab.transformer import Transformer
from chameleon_lab.vocabulary import Modality, Vocabulary

BLOCK = 3  # a code is drawn as the middle of so many by so many of it, away from the decoder's edges
CODES_AT_ONCE = 64  # codes drawn in one batch


class Walk:
    """One document under way in a model, and what may come next: `next`, a `NextToken`.

    `encode` makes a prompt's tokens; `grammar` says what may be written. `settings` and `strengths` (those of guidance:
    one for two-way, text and image for three-way) may be changed between two steps, `seed` too: the draw of the reply's
    n-th token is the n-th of its seed, as in `Continuation`. Raises ValueError where a prompt leaves no room to answer.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: MixedModalTokenizer,
        document: Document,
        settings: Settings,
        grammar: Rules,
        seed: int = 0,
        encode: Callable[[Document], np.ndarray] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.grammar = model, tokenizer, grammar
        self._encode = encode or tokenizer.encode
        self.settings, self.strengths = settings, strengths_of(settings.guide)
        self.seed = seed
        self.start(document)

    def start(self, document: Document) -> None:
        """Begins with another prompt. Raises ValueError, and then changes nothing, where no room to answer is left."""
        tokens = self.tokenizer.vocabulary.check(self._encode(document))
        context = self.model.config.context
        if not 0 < len(tokens) < context:
            raise ValueError(
                f"The prompt has {len(tokens)} tokens and the model's context holds {context}: shorten it; an image "
                f"costs {self.tokenizer.image_tokens} tokens."
            )
        most = self.settings.max_tokens
        limit = context if most is None else min(context, len(tokens) + most)
        state = self.grammar.start(tokens, limit - len(tokens))
        self.document, self.prompt, self.limit = document, tokens, limit
        self.tokens: list[int] = tokens.tolist()
        self._states: list[State] = [state]  # after the prompt, and after each token of the reply
        self._ending: int | None = None  # the token that ended the reply, which does not stand in it
        self._look()

    @property
    def seed(self) -> int:
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        if plain_number(seed, "seed", whole=True) < 0:
            raise ValueError(f"seed must be 0 or more, not {seed}.")
        self._seed = int(seed)
        if hasattr(self, "next"):
            self.next = replace(self.next, draw=self._draw())

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    @property
    def depth(self) -> tuple[int, int]:
        """Layers, and heads in each."""
        return self.look.depth

    # The walk

    def change(self, strengths: Sequence[float] | None = None, **changes: Any) -> None:
        """Changes settings for the steps to come, as `Settings.changed` does, and how strongly guidance pulls.

        Raises ValueError for what cannot be, and then changes nothing.
        """
        if "guidance" in changes:
            raise ValueError("Guidance is changed by its strengths here: change(strengths=(3.0,)).")
        settings = self.settings.changed(**changes)
        if strengths is not None:
            strengths = tuple(float(plain_number(each, "guidance")) for each in strengths)
            if len(strengths) != len(self.strengths):
                raise ValueError(f"This guidance has {len(self.strengths)} strengths, not {len(strengths)}.")
            self._guide_of(strengths)
            self.strengths = strengths
        self.settings = settings
        if "text_guidance" in changes:
            self._look()
        self.next = replace(self.next, samplers=self._samplers, strengths=self.strengths)

    def step(self, token: int | None = None) -> int | None:
        """Puts the next token behind the document: the one drawn with the settings, or one of the reader's choice.

        None, and nothing changes, after the end. A token that ends the reply is not put there: `next.ended` says so.
        Raises ValueError for one that the grammar does not let come.
        """
        if self.next.ended:
            return None
        token = self.draw() if token is None else int(plain_number(token, "token", whole=True))
        if not 0 <= token < self.vocabulary.size or not self.next.allowed_V[token]:
            raise ValueError(f"Token {token} cannot come here: {self.next.reason(token)}")
        state = self.grammar.advance(self._states[-1], token)
        self._states.append(state)
        if state.ended:
            self._ending = token
            self.next = replace(self.next, ended=state.ended, state=_ENDS.get(state.ended, state.ended))
        else:
            self.tokens.append(token)
            self._look()
        return token

    def back(self) -> None:
        """Takes the last token of the reply off again, or its end; nothing where the reply has not begun."""
        if len(self._states) == 1:
            return
        self._states.pop()
        if self._ending is None:
            self.tokens.pop()
        self._ending = None
        self._look()

    def restart(self) -> None:
        """Goes back to the prompt."""
        del self._states[1:], self.tokens[len(self.prompt) :]
        self._ending = None
        self._look()

    def draw(self) -> int:
        """The token that comes next with the settings as they are, by the library's own sampler."""
        here = self.next
        ids_V = torch.from_numpy(np.flatnonzero(here.allowed_V))
        if len(ids_V) == 1:
            return int(ids_V[0])
        logits_SV = torch.from_numpy(here.logits_SV)
        if here.share is None:
            logits_1V = logits_SV[:1].masked_fill(torch.from_numpy(~here.allowed_V), -torch.inf)
            written_1V = torch.zeros(logits_1V.shape, dtype=torch.bool)
            reply = np.array(self.tokens[len(self.prompt) :], np.int64)
            written_1V[0, torch.from_numpy(reply[self.vocabulary.modality[reply] == Modality.TEXT])] = True
            return int(self.settings.text_sampler.pick(logits_1V, [here.draw], written_1V))
        logits_S1V = logits_SV[:, None, ids_V]
        return int(ids_V[self.settings.image_sampler.pick(self._mix(logits_S1V, here.share), [here.draw])])

    # What a reader looks at

    def words(self, token: int) -> str:
        """A token in words: its piece of text, "code 22", or what kind of special token it is."""
        return self.look.words(token)

    def weights(self, layer: int, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Attention's scores before the softmax, and its weights: heads x positions 0 to `position` each."""
        return self.look.attention_scores(layer, position), self.look.heads(layer, position)

    def image(self, image: int) -> PIL.Image.Image:
        """An image of the document so far, one under way filled up. Raises ValueError for one without a cell."""
        return self.look.image(image)

    @torch.inference_mode()
    def swatches(self, codes: Sequence[int]) -> list[PIL.Image.Image]:
        """What codes look like by themselves: the middle of a block of each. Raises what `decode` raises."""
        tokenizer, pictures = self.tokenizer.image, list[PIL.Image.Image]()
        codes_B11 = torch.as_tensor(np.asarray(codes, np.int64), device=tokenizer.device)[:, None, None]
        for some_B11 in codes_B11.split(CODES_AT_ONCE):
            for pixels_CHW in tokenizer.decode_pixels(some_B11.expand(-1, BLOCK, BLOCK)):
                picture = picture_of(pixels_CHW)
                side = picture.width // BLOCK
                pictures.append(picture.crop((side, side, 2 * side, 2 * side)))
        return pictures

    # Parts

    def _look(self) -> None:
        """Reads the document as it is now, and what may come behind it."""
        self.look = Inspection(self.model, self.tokenizer, self.tokens)
        state, room = self._states[-1], self.limit - len(self.tokens)
        share = self.grammar.share(state)
        ended, allowed_V = ("length" if room <= 0 else None), np.zeros(self.vocabulary.size, bool)
        if not ended:
            allowed_V = self.grammar.allowed(state, room).allowed_V
        logits_SV = [_last_logits(self.look).copy()]
        if state.place is None and not ended and (guide := self.settings.text_guide):
            self._mix_words(logits_SV[0], guide, np.flatnonzero(allowed_V))
        if share is not None and not ended and (guide := self._guide):
            twins = [_last_logits(Inspection(self.model, self.tokenizer, each)) for each in self._streams(guide)]
            logits_SV += twins
            if not self.strengths:  # a guidance of the reader's own, of which only the result can be shown
                ids_V = np.flatnonzero(allowed_V)
                mixed_1V = guide.mix(torch.from_numpy(np.stack(logits_SV)[:, None, ids_V]), [share])
                logits_SV = [logits_SV[0].copy()]
                logits_SV[0][ids_V] = mixed_1V[0].float().numpy()
        self.next = NextToken(
            tokens=self.look.readings,
            prompt=len(self.prompt),
            state=_ENDS["length"] if ended else self._state_words(state),
            ended=ended,
            share=share,
            grid=self._grid(state),
            logits_SV=np.stack(logits_SV),
            allowed_V=allowed_V,
            reasons=self._reasons(state, room),
            samplers=self._samplers,
            strengths=self.strengths,
            draw=self._draw(),
        )

    def _draw(self) -> float:
        """Uniform in [0, 1): that of the next token, which is its place in the reply."""
        return float(np.random.default_rng(self.seed).random(len(self._states))[-1])

    @property
    def _guide(self) -> Guidance | None:
        return self._guide_of(self.strengths)

    @property
    def _samplers(self) -> dict[str, dict[str, float]]:
        return {"words": vars(self.settings.text_sampler).copy(), "pictures": vars(self.settings.image_sampler).copy()}

    def _guide_of(self, strengths: Sequence[float]) -> Guidance | None:
        guide = self.settings.guide
        if not strengths:
            return guide
        if isinstance(guide, ThreeWay):
            text, image = strengths
            return replace(guide, text=text, image=image)
        if guide is None or isinstance(guide, TwoWay):
            return replace(guide or TwoWay(1.0), scale=strengths[0])
        return guide

    def _mix(self, logits_S1V: Tensor, share: float) -> Tensor:
        """One row of logits for the codes. Strength 1 of a model without guidance is the row's own, to the last bit."""
        unguided = self.settings.guide is None and self.strengths == (1.0,)
        if len(logits_S1V) == 1 or unguided or (guide := self._guide) is None:
            return logits_S1V[0]
        return guide.mix(logits_S1V, [share])

    def _mix_words(self, logits_V: np.ndarray, guide: Guidance, ids_V: np.ndarray) -> None:
        """Puts what a guidance of words makes of the words that may come in their place; only that can be shown."""
        tokens = np.array(self.tokens, np.int64)
        ends = np.flatnonzero(tokens == self.vocabulary.end_image) + 1
        first = max([len(self.prompt), *ends[-1:]])  # where the stretch of words began, and the twins were asked
        streams = [np.concatenate([each, tokens[first:]]) for each in guide.streams(tokens[:first], self.tokenizer)]
        looks = [_last_logits(Inspection(self.model, self.tokenizer, each)) for each in streams]
        mixed_1V = guide.mix(torch.from_numpy(np.stack([logits_V, *looks])[:, None, ids_V]), [0.0])
        logits_V[ids_V] = mixed_1V[0].float().numpy()

    def _streams(self, guide: Guidance) -> list[np.ndarray]:
        """What each twin has been fed: its view of the document up to the image's first code, and the codes since."""
        tokens = np.array(self.tokens, np.int64)
        begin = int(np.flatnonzero(tokens == self.vocabulary.begin_image)[-1])
        codes = np.flatnonzero(self.vocabulary.modality[tokens[begin:]] == Modality.IMAGE)
        first = begin + int(codes[0]) if len(codes) else len(tokens)
        return [np.concatenate([stream, tokens[first:]]) for stream in guide.streams(tokens[:first], self.tokenizer)]

    def _grid(self, state: State) -> tuple[int, int] | None:
        sides = state.grid or self.tokenizer.form.sides
        return None if state.place is None or len(sides) < 2 else (sides[0], sides[1])

    def _state_words(self, state: State) -> str:
        if state.place is None:
            return "words"
        slot = self.tokenizer.form.slot(state.place, state.grid)
        if slot.kind is SlotKind.CODE:
            return f"picture {slot.codes}/{slot.total}"
        return f"picture: {slot.kind.value} comes next"

    def _reasons(self, state: State, room: int) -> tuple[tuple[int, int, str], ...]:
        """Of which tokens the grammar lets none come, from one id to before another, and why."""
        vocabulary, grammar = self.vocabulary, self.grammar
        if state.place is not None:
            slot = self.tokenizer.form.slot(state.place, state.grid)
            words = {
                SlotKind.CODE: f"A picture is under way: {slot.total - slot.codes} of its {slot.total} cells are "
                "missing, and only codes fill cells.",
                SlotKind.SIDE: "A picture begins with two tokens that give its sides.",
                SlotKind.NEW_LINE: "A row of cells ends with new_line.",
                SlotKind.END: "The picture is whole: end_image comes now.",
            }[slot.kind]
            return ((0, vocabulary.size, words),)
        size, n = self.tokenizer.image_tokens, "The grammar does not let it come here."
        begin = words = end = n
        if isinstance(grammar, Grammar):
            begin = f"A picture has {size} tokens, and {room} may still come."
            if state.images >= grammar.max_images:
                begin = f"This grammar allows {grammar.max_images} pictures, and they are drawn."
            if not grammar.images:
                begin = "This grammar writes words only."
            words = "Room is left for the pictures that have to come." if grammar.text else "This grammar draws only."
            end = f"{grammar.min_images} pictures have to come before the end."
        first, codes = vocabulary.first_image, vocabulary.codes
        return (
            (first, first + codes, "Codes stand only between begin_image and end_image."),
            (vocabulary.begin_image, vocabulary.begin_image + 1, begin),
            (vocabulary.end_image, vocabulary.end_image + 1, "No picture is under way."),
            (vocabulary.end_turn, vocabulary.end_turn + 1, end),
            (vocabulary.end_document, vocabulary.end_document + 1, end),
            (vocabulary.first_text, vocabulary.size, words),
            (0, vocabulary.first_text, "No reply holds this token: it is there for training."),
        )


_ENDS = {
    "end_turn": "the reply is complete: the model ended its turn",
    "end_document": "the reply is complete: the model ended the document",
    "length": "there is no room for another token",
    "ill_formed": "the model wrote a token that cannot stand there",
}


def strengths_of(guide: Guidance | None) -> tuple[float, ...]:
    """The numbers that say how strongly a guidance pulls: one of two-way, text and image of three-way.

    None is two-way with 1. () for a guidance of another kind, and for one that follows a schedule.
    """
    match guide:
        case None:
            return (1.0,)
        case TwoWay(scale=int() | float() as scale):
            return (float(scale),)
        case ThreeWay(text=int() | float() as text, image=int() | float() as image):
            return float(text), float(image)
    return ()


def _last_logits(look: Inspection) -> np.ndarray:
    """What the model says of the token behind the last one: logits_V, float32."""
    return look.lens(look.depth[0] - 1, slice(-1, None))[0]
