"""`python3 tests/benchmarks/gpu`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # instead of this folder, whose modules are `gpu`'s

from gpu.command import main  # noqa: E402

sys.exit(main())
