"""Settings of all tests: helper modules of this folder are importable; hypothesis has no deadline."""

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# A shared machine makes wall time per example meaningless.
settings.register_profile(
    "strata", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("strata")
