"""Settings of every test: no deadlines (a first call compiles or imports), the same examples at every run."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("hepattn", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hepattn")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_graphs(request: pytest.FixtureRequest) -> None:
    """Tests on a GPU compile more kernels of flex than it allows one process: each begins without the others'."""
    if request.node.get_closest_marker("cuda") is not None:
        torch.compiler.reset()
