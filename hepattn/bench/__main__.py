"""`python -m hepattn.bench NAME [options]`: measures one thing, both sides in one run, and prints a table."""

import sys
from importlib import import_module

BENCHES = {
    "ablation": ("hepattn.bench.ablation", "what each switch of the encoder does to a trained hit filter"),
    "attention": ("hepattn.bench.attention", "windowed attention on a GPU against FA2, FA4 and global attention"),
    "experts": ("hepattn.bench.experts", "a mixture of experts against a dense network of the same active width"),
    "local-cpu": ("hepattn.bench.local_cpu", "windowed attention on a CPU against dense-mask SDPA and flex"),
    "masks": ("hepattn.bench.masks", "block masks from intervals against create_block_mask"),
    "matcher": ("hepattn.bench.matcher", "assignments of queries to targets: scipy against lapx and a GPU's"),
    "tracks": ("hepattn.bench.tracks", "hits to tracks, against ACTS's Kalman filter on the same events"),
    "simulate": ("hepattn.bench.simulate", "seconds an event of the simulator, and its events against TrackML's"),
}


def main(argv: list[str]) -> int:
    """Runs the bench that the first word names; without one, lists them."""
    if argv and argv[0] in BENCHES:
        return int(import_module(BENCHES[argv[0]][0]).main(argv[1:]) or 0)
    listing = "\n".join(f"  {name:<12}{what}" for name, (_, what) in BENCHES.items())
    sys.stdout.write(f"usage: python -m hepattn.bench NAME [--help]\n{listing}\n")
    return 0 if not argv or argv[0] in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
