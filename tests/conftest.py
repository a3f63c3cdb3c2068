"""Settings of every test: no deadlines (a first call compiles or imports), the same examples at every run."""

import torch
from hypothesis import HealthCheck, settings

settings.register_profile("hepattn", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hepattn")
torch.set_num_threads(1)
