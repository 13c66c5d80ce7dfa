"""The artwork of the emoji corpus: pinned packages of openly licensed drawings, drawn into one folder of pictures.

`python -m chameleon_lab.corpora.emoji_artwork FOLDER` fetches the packages from npm (24 MB), checks them against their
hashes, and writes `pictures/STYLE/IDEA.png`, `ideas.jsonl` and `sources.json`. It needs the extra `emoji`: resvg draws
the vector graphics, and the package `emoji` has the names in five languages.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import io
import json
import os
import tarfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image

from chameleon_lab.pictures import decode_picture
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import whole_folder

ARTWORK_SIDE = 96
"""Pixels along a side: more than a tokenizer of 64 reads, so that pictures can be shifted and scaled."""

LANGUAGES = ("en", "de", "fr", "es", "ja")
STYLES_NEEDED = 4  # an idea that fewer hands have drawn is left out


@dataclass(frozen=True)
class Package:
    """One hand's drawings: an npm package of one version, its hash (SHA-512, base64), its licence and its credit."""

    style: str
    name: str
    version: str
    integrity: str
    licence: str
    credit: str

    @property
    def address(self) -> str:
        registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
        return f"{registry}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"

    def fetch(self) -> tarfile.TarFile:
        """The package. Raises ValueError where its bytes are not those that were pinned."""
        with urllib.request.urlopen(self.address, timeout=120) as answer:
            content = answer.read()
        if (integrity := base64.b64encode(hashlib.sha512(content).digest()).decode()) != self.integrity:
            raise ValueError(f"{self.address} has the SHA-512 {integrity}, and {self.integrity} was pinned.")
        return tarfile.open(fileobj=io.BytesIO(content))


PACKAGES = (
    Package(
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        "Noto Emoji, Google Inc.",
    ),
    Package(
        "blob",
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
        "Noto Emoji (version 1, “blobs”), Google Inc.",
    ),
    Package(
        "flat",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
        "Fluent Emoji, Microsoft Corporation",
    ),
    Package(
        "3d",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT",
        "Fluent Emoji 3D, Microsoft Corporation",
    ),
    Package(
        "twitter",
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        "Twemoji, copyright Twitter, Inc and other contributors, CC-BY 4.0",
    ),
)
STYLES = tuple(each.style for each in PACKAGES)

HEART_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
HEARTS = tuple(f"{colour}-heart" for colour in (*HEART_COLOURS, "pink", "grey", "light-blue"))
COLOURED_SHAPES = tuple(f"{colour}-{shape}" for shape in ("circle", "square") for colour in HEART_COLOURS)
COLOURED_SHAPES += ("black-large-square", "white-large-square")
TONES = {
    "light": "1f3fb", "medium-light": "1f3fc", "medium": "1f3fd", "medium-dark": "1f3fe", "dark": "1f3ff",
}  # fmt: skip
HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
CLOCKS = tuple(f"{hour}-{half}" for hour in HOURS for half in ("oclock", "thirty"))


IDEAS = """\
gesture:
backhand-index-pointing-down backhand-index-pointing-left backhand-index-pointing-right backhand-index-pointing-up
call-me-hand clapping-hands crossed-fingers ear flexed-biceps folded-hands foot hand-with-fingers-splayed
index-pointing-up leg love-you-gesture nail-polish nose ok-hand oncoming-fist open-hands palms-up-together
pinched-fingers raised-fist raised-hand raising-hands sign-of-the-horns thumbs-down thumbs-up victory-hand
vulcan-salute waving-hand writing-hand

sky:
cloud cloud-with-lightning cloud-with-lightning-and-rain cloud-with-rain cloud-with-snow comet crescent-moon cyclone
droplet fire first-quarter-moon first-quarter-moon-face fog full-moon full-moon-face glowing-star high-voltage
last-quarter-moon last-quarter-moon-face new-moon new-moon-face rainbow ringed-planet shooting-star snowflake snowman
snowman-without-snow star sun sun-behind-cloud sun-behind-large-cloud sun-behind-rain-cloud sun-behind-small-cloud
sun-with-face tornado umbrella umbrella-with-rain-drops volcano waning-crescent-moon waning-gibbous-moon water-wave
waxing-crescent-moon waxing-gibbous-moon wind-face

transport:
aerial-tramway airplane ambulance anchor articulated-lorry automobile bicycle bullet-train bus canoe delivery-truck
ferry fire-engine flying-saucer helicopter kick-scooter locomotive metro minibus monorail motor-boat motor-scooter
motorcycle oncoming-bus oncoming-police-car oncoming-taxi parachute passenger-ship police-car racing-car rocket
sailboat satellite ship skateboard small-airplane speedboat sport-utility-vehicle taxi tractor train tram trolleybus

place:
bank camping castle church circus-tent desert-island factory ferris-wheel fountain hospital hotel house
house-with-garden japanese-castle mosque mount-fuji mountain post-office school snow-capped-mountain stadium
statue-of-liberty sunrise tent tokyo-tower

thing:
alarm-clock american-football artist-palette balloon baseball basketball battery bell bomb books bowling boxing-glove
briefcase camera candle christmas-tree closed-book closed-umbrella clutch-bag coffin compass computer-disk
couch-and-lamp credit-card crown crystal-ball dagger desktop-computer dice direct-hit door dress drum electric-plug
envelope eyeglasses fishing-pole floppy-disk game-die gear gem-stone glasses glowing-star goblin graduation-cap guitar
hammer handbag headphone high-heeled-shoe hourglass-done ice-skate jack-o-lantern jeans key kimono kite label laptop
light-bulb lipstick locked loudspeaker magnet magnifying-glass-tilted-left mans-shoe megaphone microphone microscope
mobile-phone money-bag musical-keyboard musical-note necktie newspaper package paintbrush paperclip pen pencil pill
ping-pong pool-8-ball puzzle-piece radio ribbon ring rugby-football running-shirt running-shoe saxophone scissors
scroll shield shopping-cart shower skis soccer-ball sparkles sunglasses syringe t-shirt teddy-bear telephone telescope
television tennis thermometer toilet top-hat trophy trumpet unlocked video-game violin volleyball watch wrapped-gift
wrench yarn yo-yo

left out:
anger-symbol dotted-line-face distorted-face eye-in-speech-bubble left-speech-bubble right-anger-bubble speech-balloon
thought-balloon fight-cloud hole hundred-points zzz dashing-away sweat-droplets dizzy collision black-bird guide-dog
service-dog wing feather paw-prints pig-nose microbe leaf-fluttering-in-wind cooking mate amphora beverage-box
pouring-liquid
"""
LISTS = {family: names.split() for family, _, names in (each.partition(":") for each in IDEAS.split("\n\n"))}
"""Ideas by family, in Noto's names; faces, animals and food are Noto's own categories, without those `left out`."""


FAMILIES = ("heart", "shape", "clock", *(family for family in LISTS if family != "left out"), "face", "animal", "food")


@dataclass(frozen=True)
class Drawn:
    """An idea: its code points, its family, its names by language, and the hands that drew it.

    `parts` are what a combination is made of ("thumbs up", "dark"), where its family crosses two lists.
    """

    idea: str
    family: str
    names: Mapping[str, str]
    parts: tuple[str, str] | None
    styles: tuple[str, ...]


class Hand:
    """A package opened: which ideas it has, by code points, and what they look like."""

    def __init__(self, package: Package, names: Mapping[str, str]) -> None:
        """`names`: Noto's name of each idea, for a package that has no code points."""
        self.package, self._names, self._archive = package, names, package.fetch()

    def _json(self, name: str) -> dict[str, Any]:
        file = self._archive.extractfile(f"package/{name}.json")
        assert file is not None
        return json.load(file)

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        return self._json("metadata")["categories"]

    @cached_property
    def names(self) -> dict[str, str]:
        """The name of each idea that is drawn, by its code points without variation selectors."""
        if chars := self._json("chars"):
            return {_plain(points): name for points, name in chars.items()}
        there = self._icons["icons"].keys() | self._icons.get("aliases", {}).keys()
        return {idea: name for idea, name in self._names.items() if name in there}

    @cached_property
    def _icons(self) -> dict[str, Any]:
        return self._json("icons")

    @cached_property
    def _files(self) -> dict[str, str]:
        return {_plain(Path(name).stem): name for name in self._archive.getnames() if name.endswith(".webp")}

    def __contains__(self, idea: str) -> bool:
        return idea in (self._files or self.names)

    def draw(self, idea: str) -> PIL.Image.Image:
        """The drawing in RGBA, `ARTWORK_SIDE` pixels along a side."""
        if self._files:
            file = self._archive.extractfile(self._files[idea])
            assert file is not None
            drawing = decode_picture(io.BytesIO(file.read()), self._files[idea]).convert("RGBA")
            return drawing.resize((ARTWORK_SIDE, ARTWORK_SIDE), PIL.Image.Resampling.LANCZOS)
        name, icons = self.names[idea], self._icons
        icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{ARTWORK_SIDE}" height="{ARTWORK_SIDE}">{icon["body"]}</svg>'
        )
        import resvg_py  # pyright: ignore[reportMissingImports]

        return decode_picture(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg))), f"The drawing of {idea}").convert("RGBA")


def _plain(points: str) -> str:
    return points.lower().replace("-fe0f", "")


def names_by_language() -> dict[str, dict[str, str]]:
    """language → code points → name, from the package `emoji`. Raises ImportError, with what to install."""
    spec = importlib.util.find_spec("emoji")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("Names come from the package emoji: pip install 'chameleon-lab[emoji]'.")
    folder = Path(spec.submodule_search_locations[0]) / "unicode_codes"
    names: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        plain = json.loads((folder / f"emoji{'' if language == 'en' else '_' + language}.json").read_text())
        spelled = {char: entry["en"] if language == "en" else entry for char, entry in plain.items()}
        names[language] = {
            _plain("-".join(f"{ord(letter):04x}" for letter in char)): _words(name) for char, name in spelled.items()
        }
    return names


def _words(name: str) -> str:
    return name.strip(":").replace("_", " ").replace("’", "'")


def ideas_of(noto: Hand) -> Iterator[tuple[str, str, tuple[str, str] | None]]:
    """(code points, family, parts) of the ideas that people ask for, by Noto's names and categories."""
    points = {name: idea for idea, name in sorted(noto.names.items(), reverse=True)}
    families: dict[str, Any] = {
        "heart": HEARTS, "shape": COLOURED_SHAPES, "clock": CLOCKS, **LISTS,
        "face": noto.categories["Smileys & Emotion"],
        "animal": noto.categories["Animals & Nature"], "food": noto.categories["Food & Drink"],
    }  # fmt: skip
    earlier = set(families.pop("left out"))
    for family, names in families.items():
        for name in sorted(names):
            if name in earlier or name not in points:
                continue
            earlier.add(name)
            parts = name.rpartition("-") if family in ("heart", "shape", "clock") else ()
            yield points[name], family, (parts[0], parts[2]) if parts else None
            if family == "gesture":
                for tone, code in TONES.items():
                    yield f"{points[name]}-{code}", family, (name, tone)


def build(folder: Path | str, say: Callable[[str], object] = print) -> Path:
    """Fetches, checks and draws everything into a folder, which appears whole; returns it."""
    folder = Path(folder)
    if (folder / "sources.json").exists():
        return folder
    drawn = list[Drawn]()
    with whole_folder(folder) as hidden:
        names, hands = names_by_language(), list[Hand]()
        for package in PACKAGES:
            say(f"{package.style}: {package.name} {package.version}, {package.licence}")
            hands.append(Hand(package, hands[0].names if hands else {}))
        for idea, family, parts in ideas_of(hands[0]):
            theirs = [hand for hand in hands if idea in hand]
            spelled = {language: by_points[idea] for language, by_points in names.items() if idea in by_points}
            if len(theirs) < STYLES_NEEDED or "en" not in spelled:
                continue
            for hand in theirs:
                target = hidden / "pictures" / hand.package.style / f"{idea}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                hand.draw(idea).save(target)
            drawn.append(Drawn(idea, family, spelled, parts, tuple(hand.package.style for hand in theirs)))
            if len(drawn) % 100 == 0:
                say(f"{len(drawn)} ideas drawn")
        lines = [json.dumps(asdict(each), ensure_ascii=False) for each in drawn]
        (hidden / "ideas.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sources = json.dumps([asdict(each) for each in PACKAGES], indent=1)
        (hidden / "sources.json").write_text(sources, encoding="utf-8")
    say(f"{len(drawn)} ideas, {sum(len(each.styles) for each in drawn)} pictures in {folder}")
    return folder


def build_emoji_command() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the corpus goes")
    build(parser.parse_args().folder)


if __name__ == "__main__":
    raise SystemExit(exit_code(build_emoji_command))
