"""What others wrote never hangs, floods, runs or raises anything but the lab's own errors: some seconds of the fuzz.

`CHAMELEON_FUZZ_SECONDS=3600 python -m pytest tests/test_fuzz.py` takes an hour instead, with a seed of its own.
"""

import os
import sys
import time

import pytest
from fuzz_readers import FUZZ_READERS, fuzz

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and counted as Linux has it")


def test_damaged_files_of_every_kind_give_a_value_or_a_value_error():
    seconds = float(os.environ.get("CHAMELEON_FUZZ_SECONDS", "8"))
    seed = 0 if seconds <= 60 else int(time.time())
    outcome = fuzz([reader.name for reader in FUZZ_READERS], seconds, seed)
    assert not outcome.faults, f"seed {seed}: {outcome.faults}"
    assert all(outcome.cases.values()), outcome.cases
