"""Notices: why something healthy takes long, or begins anew."""

import logging

NOTICE = logging.WARNING + 1
"""The level of a notice, for `log.log`. Python says it unasked, as it does warnings; below these it would say nothing
unless somebody set up a log. A notebook shows it as an ordinary line (`chameleon_widgets.cell_log`), not in red."""
