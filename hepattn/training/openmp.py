"""One team of OpenMP workers for the thread that trains, whatever the main thread has computed before."""

import ctypes
from pathlib import Path

__all__ = ["release_workers"]

OMP_PAUSE_SOFT = 1
LOADED = Path("/proc/self/maps")


def release_workers() -> bool:
    """Sends home the OpenMP workers that wait for the calling thread; they are back at its next parallel loop.

    GNU's OpenMP, which torch uses on Linux, keeps a team of workers for every thread that ever ran a parallel loop.
    Once there are more workers than cores it lets all of them sleep between two loops, and a training in another thread
    takes twice as long (150 steps of the lesson's filter on two cores: 28 s, and 14 s after this call). OpenMP 5.0,
    section 3.2.44, `omp_pause_resource_all`.

    Returns:
        Whether there was a GNU OpenMP to ask; False on systems with another one, which are left as they are.
    """
    if not LOADED.is_file():
        return False
    libraries = {line.split()[-1] for line in LOADED.read_text().splitlines() if "/libgomp" in line}
    calls = [getattr(ctypes.CDLL(path), "omp_pause_resource_all", None) for path in sorted(libraries)]
    return any([call is not None and call(OMP_PAUSE_SOFT) == 0 for call in calls])  # noqa: C419  (all are asked)
