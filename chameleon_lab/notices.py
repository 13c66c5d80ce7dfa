"""Notices: why something healthy takes long, or begins anew. Between what only a command says and a warning."""

NOTICE = 25
"""The level of a notice, for `log.log`. A notebook shows it as an ordinary line (`chameleon_widgets.cell_log`), and a
warning in red."""
