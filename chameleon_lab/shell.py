"""The entry of the command `chameleon-lab`: it answers signals from its first moment on, while the rest is imported."""

from __future__ import annotations

from chameleon_lab.signals import answering, end_at_once


def start() -> int:
    with answering(end_at_once, {}):
        from chameleon_lab.commands import main

        return main.main()


if __name__ == "__main__":
    raise SystemExit(start())
