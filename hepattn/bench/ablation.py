"""What each switch of the encoder does to the hit filter: the same events, the same steps, several seeds.

`python -m hepattn.bench ablation --events FOLDER --out ablation.jsonl`. Every variant differs from the baseline in what
its name says and in nothing else. All see the same events, turned in the same way, in the same order; a seed draws the
first weights. Variants train side by side, each in its own process, spread over the GPUs; each is timed while all
others wait. A finished training is a line of the file and is not run again.

A step on a part of an event costs a part of the time, so that more steps go into the same: with `--sector 0.25` all
steps but the timed ones see a quarter of an event, the hits with phi in a quarter turn. Which hits are wanted is
decided on the whole event, and whole events are held out.
"""

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from torch.utils.data import DataLoader
from typing_extensions import override

from hepattn.bench.kept import Kept, Sectors, keep
from hepattn.data.dataset import Augmentation, EventStream, HitDataset
from hepattn.data.sources import open_events
from hepattn.metrics import at_efficiency, at_purity, roc_auc_events
from hepattn.metrics.ablation import BASELINE, Run, read_runs, table
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilterConfig
from hepattn.training.cli import CONFIGS
from hepattn.training.filtering import HitFilterModule, scored_events
from hepattn.training.optimise import OptimiserConfig

IN_ENCODER: Mapping[str, dict[str, Any]] = {
    "qk_norm": {"qk_norm": "rms"},
    "qkv_norm": {"qk_norm": "rms", "v_norm": True},
    "hybrid_norm": {"hybrid_norm": True},
    "layer norm": {"norm": "layer"},
    "layer_scale": {"layer_scale": 1e-2},
    "zero_start": {"zero_start": True},
    "drop_path": {"drop_path": 0.1},
    "value_residual": {"value_residual": True},
    "gate": {"gate": True},
    "laser": {"laser": True},
    "registers": {"registers": 64},
    "global_registers": {"global_registers": 4},
    "cls": {"cls": 1},
    "distance_bias": {"distance_bias": "circular"},
    "experts": {"experts": 8},
    "gelu": {"activation": "gelu", "dense_ratio": 3.0},
}
"""Changes of `EncoderConfig` by variant. "gelu" is not gated, and as wide as makes its matrices as large."""
IN_FILTER: Mapping[str, dict[str, Any]] = {
    BASELINE: {},
    "rotary": {"rotary": True},
    "not rotary": {"rotary": False},
    "count": {"count": True},
    "no encodings": {"encoding": "none"},
    "hepformer encodings": {"encoding": "hepformer", "r_unit": 1000.0, "z_unit": 1000.0},
    "fourier encodings": {"encoding": "fourier", "r_unit": 1000.0, "z_unit": 1000.0},
    "no attention": {"attention": False, "rotary": False},  # there is nothing to turn
}
"""Changes of `HitFilterConfig` by variant; "count" has a CLS token, too. The baseline is rotary where the configuration
is; what would change nothing is left out."""
VARIANTS = (*IN_FILTER, *IN_ENCODER)
UNTIMED, TIMED, PARTS = 30, 100, 40
"""Steps before the clock starts (the first ones compile), steps that it runs, and parts of the curve that is kept."""


def configure(variant: str, config: HitFilterConfig) -> HitFilterConfig:
    """The baseline's configuration with the variant's change."""
    if variant == "count":
        config = replace(config, encoder=replace(config.encoder, cls=1))
    if variant in IN_ENCODER:
        return replace(config, encoder=replace(config.encoder, **IN_ENCODER[variant]))
    return replace(config, **IN_FILTER[variant])


def changes(variant: str, config: HitFilterConfig) -> bool:
    """Whether the variant has something to compare: it is the baseline, or its configuration is another one."""
    return variant == BASELINE or configure(variant, config) != config


@dataclass(frozen=True)
class Plan:
    """What all trainings share; travels to their processes.

    Attributes:
        config: of the baseline.
        optimiser: with the number of steps.
        pos_weight: weight of a target hit.
        folder: where the events of `keep` lie.
        device: "cpu" or "cuda".
    """

    config: HitFilterConfig
    optimiser: OptimiserConfig
    pos_weight: Any
    folder: Path
    device: str


@dataclass(frozen=True)
class Said:
    """What a process tells: that it is ready for its turn, has been timed (steps a second), or has failed."""

    variant: str
    speed: float | None = None
    failure: str | None = None


class Watch(pl.Callback):
    """Keeps the losses; with a pipe, waits for its turn to be timed and is timed."""

    def __init__(self, variant: str, pipe: Connection | None) -> None:
        self.variant, self.pipe = variant, pipe
        self.losses: list[torch.Tensor] = []
        self.speed: float | None = None
        self.memory: float | None = None
        self._began = 0.0

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].detach())
        if self.pipe is None or trainer.global_step not in {UNTIMED, UNTIMED + TIMED}:
            return
        on_gpu = pl_module.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
        if trainer.global_step == UNTIMED:
            self._meet()
            self._began = time.perf_counter()
            return
        self.speed = TIMED / (time.perf_counter() - self._began)
        self.memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
        self._meet()

    def _meet(self) -> None:
        assert self.pipe is not None
        self.pipe.send(Said(self.variant, self.speed))
        self.pipe.recv()

    def curve(self) -> tuple[float, ...]:
        """Mean loss in `PARTS` equal parts of the training (in as many as there were steps, if those are fewer)."""
        losses = torch.stack(self.losses).float().cpu()
        return tuple(float(part.mean()) for part in losses.tensor_split(min(PARTS, len(losses))))


def train(variant: str, seed: int, plan: Plan, pipe: Connection | None) -> Run:
    """One training of a variant, and what it reaches on the held-out events."""
    torch.compiler.reset()  # else graphs of former trainings count against dynamo's limit
    pl.seed_everything(seed)
    module = HitFilterModule(
        configure(variant, plan.config), plan.optimiser, plan.pos_weight, compile=plan.device == "cuda"
    )
    watch, steps = Watch(variant, pipe), plan.optimiser.total_steps
    assert steps is not None
    trainer = pl.Trainer(
        accelerator=plan.device,
        devices=[torch.cuda.current_device()] if plan.device == "cuda" else 1,
        precision="bf16-mixed" if plan.device == "cuda" else "32-true",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(module, DataLoader(Kept(plan.folder / "train.pt"), batch_size=None))
    module.to(plan.device).eval()
    events, off = [], []
    for batch in Kept(plan.folder / "held_out.pt"):  # type: ignore[attr-defined]
        with torch.no_grad(), torch.autocast(plan.device, torch.bfloat16, enabled=plan.device == "cuda"):
            judged = module.model.judge(batch.to(plan.device).inputs)
        events += scored_events(batch, judged.logits.sigmoid())
        if judged.log_count is not None:
            number = int(batch.num_reconstructable)
            off.append(abs(float(judged.log_count.expm1()) - number) / max(1, number))
    at_98, at_99 = at_efficiency(events, 0.98), at_efficiency(events, 0.99)
    return Run(
        variant=variant,
        seed=seed,
        steps=steps,
        parameters=sum(p.numel() for p in module.model.parameters()),
        auc=roc_auc_events(events, resamples=1).value,
        purity_98=at_98.purity.value,
        purity_99=at_99.purity.value,
        retention_98=at_98.retention.value,
        efficiency_75=at_purity(events, 0.75).efficiency.value,
        losses=watch.curve(),
        steps_per_second=watch.speed,
        gibibytes=watch.memory,
        count_error=sum(off) / len(off) if off else None,
    )


def work(variant: str, seeds: Sequence[int], plan: Plan, gpu: int, pipe: Connection) -> None:
    """A process: all trainings of a variant, one after the other, on one GPU; the first one is timed."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    try:
        if plan.device == "cuda":
            torch.cuda.set_device(gpu)
        for number, seed in enumerate(seeds):
            pipe.send(train(variant, seed, plan, None if number else pipe))
    except Exception as error:  # noqa: BLE001  (the other variants go on; this one is named at the end)
        pipe.send(Said(variant, failure=f"{type(error).__name__}: {error}"))
    pipe.close()


class Yard:
    """Runs a group of variants side by side: all get ready, each is timed alone, then all train at once.

    Args:
        path: file to which finished runs are added.
        gpus: over which variants are spread; of no use on a CPU.
    """

    def __init__(self, path: Path, gpus: int = 1) -> None:
        self.path, self.gpus = path, gpus
        self.failed: list[Said] = []

    def run(self, todo: Mapping[str, Sequence[int]], plan: Plan) -> None:
        """Trains every variant with its seeds."""
        context, pipes = multiprocessing.get_context("spawn"), {}
        for place, (variant, seeds) in enumerate(todo.items()):
            ours, theirs = context.Pipe()
            work_of = (variant, seeds, plan, place % self.gpus, theirs)
            context.Process(target=work, args=work_of, daemon=True).start()
            theirs.close()
            pipes[variant] = ours
        ready = [pipe for pipe in pipes.values() if self._hear(pipe)]
        timed = []
        for pipe in ready:
            pipe.send("your turn")
            timed += [pipe] if self._hear(pipe) else []
        for pipe in timed:
            pipe.send("train")
        while timed:
            for heard in wait(timed):
                assert isinstance(heard, Connection)
                if not self._hear(heard):
                    timed.remove(heard)

    def _hear(self, pipe: Connection) -> bool:
        """Takes the next message; False where nothing more will come."""
        try:
            said = pipe.recv()
        except EOFError:
            return False
        if isinstance(said, Run):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(said.to_json() + "\n")
            _say(f"{said.variant}, seed {said.seed}: AUC {said.auc:.4f}, purity {said.purity_98:.1%} at 98 %")
        elif said.failure:
            self.failed.append(said)
            _say(f"{said.variant} failed: {said.failure}")
            return False
        elif said.speed:
            _say(f"{said.variant}: {said.speed:.1f} steps/s")
        return True


def main(argv: Sequence[str]) -> int:
    """Trains what is not in the file yet, and prints the table of all that is."""
    parser = argparse.ArgumentParser(prog="python -m hepattn.bench ablation", description=__doc__)
    parser.add_argument("--events", required=True, help="folder of events, see hepattn.data.open_events")
    parser.add_argument("--out", type=Path, required=True, help="file of finished runs, a line each")
    parser.add_argument("--config", default="hit_filter_mu200.yaml", help="features, selection, optimiser of all")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument(
        "--rotary", action=argparse.BooleanOptionalAction, help="whether the baseline is; as in the configuration"
    )
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=16, help="last events of the folder")
    parser.add_argument("--passes", type=int, default=8, help="over the events, each turned anew; then from the start")
    parser.add_argument("--sector", type=float, default=1.0, help="share of a turn that an untimed step sees")
    parser.add_argument("--processes", type=int, default=len(VARIANTS), help="variants side by side")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that prepare events")
    parser.add_argument("--gpus", type=int, default=max(1, torch.cuda.device_count()), help="to spread variants over")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    if options.steps <= UNTIMED + TIMED:
        parser.error(f"--steps {options.steps}: a training is timed over {TIMED} steps after {UNTIMED}, give more")
    if not 0 < options.sector <= 1:
        parser.error(f"--sector is a share of a full turn, in (0, 1], not {options.sector}")
    done = {(run.variant, run.seed) for run in read_runs(options.out)}
    if other := {run.steps for run in read_runs(options.out)} - {options.steps}:
        parser.error(f"{options.out} holds trainings of {other.pop()} steps, not {options.steps}: give another --out")
    yard = Yard(options.out, options.gpus)
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(options, Path(folder))
        todo = {name: [seed for seed in options.seeds if (name, seed) not in done] for name in options.variants}
        todo = {name: seeds for name, seeds in todo.items() if seeds and changes(name, plan.config)}
        if todo:
            _keep_events(options, plan)
        names = list(todo)
        for first in range(0, len(names), options.processes):
            yard.run({name: todo[name] for name in names[first : first + options.processes]}, plan)
    runs = read_runs(options.out)
    share = "an event" if options.sector == 1 else f"{options.sector:.0%} of an event"
    _say(f"\n{plan.config.encoder}, window {plan.config.window}; {options.steps} steps, each on {share}\n")
    _say(table(runs))
    for said in yard.failed:
        _say(f"{said.variant} failed: {said.failure}")
    return 1 if yard.failed else 0


def _plan(options: argparse.Namespace, folder: Path) -> Plan:
    path = Path(options.config)
    settings = yaml.safe_load((path if path.is_file() else CONFIGS / options.config).read_text(encoding="utf-8"))
    model = settings["model"]
    encoder = EncoderConfig(dim=options.dim, num_layers=options.layers, num_heads=options.heads)
    network = model["network"] | {"window": options.window, "encoder": encoder}
    config = HitFilterConfig(**network if options.rotary is None else network | {"rotary": options.rotary})
    schedule = {"total_steps": options.steps, "warmup_steps": options.warmup}
    optimiser = OptimiserConfig(**model["optimiser"] | schedule)
    return Plan(config, optimiser, model["pos_weight"], folder, options.device)


def _keep_events(options: argparse.Namespace, plan: Plan) -> None:
    events = open_events(options.events)
    number = len(events) - options.held_out
    if number < 1 or options.held_out < 1:
        raise ValueError(
            f"{options.events} has {len(events)} events: hold out at least one, and leave one to train on, instead of "
            f"--held-out {options.held_out}"
        )
    _say(f"{number} events to train on, {options.held_out} held out, {options.passes} passes")
    features, selection = plan.config.features, plan.config.selection
    stream = iter(EventStream(number))
    shares = [1.0] * (UNTIMED + TIMED) + [options.sector] * options.steps
    order = [(next(stream)[0], shares[i]) for i in range(min(options.steps, options.passes * number))]
    turned = Sectors(HitDataset(events, features, selection, Augmentation()))
    keep(turned, order, plan.folder / "train.pt", options.workers)
    as_they_are = HitDataset(events, features, selection)
    keep(as_they_are, range(number, len(events)), plan.folder / "held_out.pt", options.workers)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
