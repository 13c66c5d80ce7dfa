"""In a notebook a notice is an ordinary line and a warning is red; elsewhere both are what Python says unasked."""

import logging

import pytest

from chameleon_lab.notices import NOTICE
from chameleon_widgets import cell_log


@pytest.mark.parametrize(
    ("where", "handlers", "out", "err"),
    [
        ("a notebook", [], "it compiles\n", "it is slow\n"),
        ("a script", [], "", "it compiles\nit is slow\n"),
        ("a notebook with a log of its own", [logging.NullHandler()], "", ""),
    ],
)
def test_a_notice_is_an_ordinary_line_of_a_cell(monkeypatch, capsys, where, handlers, out, err):
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    monkeypatch.setattr(cell_log, "get_ipython", lambda: object() if "notebook" in where else None)
    cell_log.show_log()
    log = logging.getLogger("chameleon_lab.anything")
    log.log(NOTICE, "it %s", "compiles")
    log.warning("it is slow")
    log.info("a detail")
    assert capsys.readouterr() == (out, err)
