"""What all trainings of models of hits share: optimiser, schedule, clipping, and checkpoints that go on exactly."""

import json
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, TypeVar, overload
from zipfile import is_zipfile

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from typing_extensions import override

from hepattn.models.hit_encoder import HitModel, HitModelConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.training.optimise import OptimiserConfig, make_optimiser, make_schedule

Model = TypeVar("Model", bound=HitModel)


class TrainingModule(pl.LightningModule):
    """Base of what trains a model of hits; a derived class says how a batch becomes a loss, and what is measured.

    Its checkpoints hold the model's configuration as JSON, under the model's kind, and the states of random numbers.

    Args:
        model: is trained
        optimiser: AdamW and its schedule
    """

    MODEL: ClassVar[type[HitModel]]
    """What is trained."""
    NOUN: ClassVar[str]
    """Its name in messages."""
    OF_USE: ClassVar[frozenset[str]] = frozenset()
    """Settings of the configuration that shape no weight: a checkpoint may have been made with others."""

    def __init__(self, model: HitModel, optimiser: OptimiserConfig) -> None:
        super().__init__()
        self.model = model
        self.optimiser_config = optimiser
        self._random: dict[str, Tensor] = {}
        self._told: set[str] = set()

    def total_steps(self) -> int:
        """Steps of the schedule.

        Raises:
            ValueError: neither the trainer nor the configuration says how many
        """
        if self.optimiser_config.total_steps is not None:
            return self.optimiser_config.total_steps
        self.check_end(self.trainer)
        return int(self.trainer.estimated_stepping_batches)

    def check_end(self, trainer: pl.Trainer) -> None:
        """Refuses a training without an end, whose schedule can't be known.

        Raises:
            ValueError: neither the trainer nor the configuration says how many steps
        """
        if self.optimiser_config.total_steps is None and trainer.max_steps == -1 and trainer.max_epochs == -1:
            raise ValueError(
                "the schedule needs an end: set trainer.max_steps, trainer.max_epochs or model.optimiser.total_steps"
            )

    @override
    def configure_optimizers(self) -> Any:
        """AdamW with its schedule, stepped at every batch."""
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimiser = make_optimiser(self.model, self.optimiser_config, fused=not scaled)
        schedule = make_schedule(optimiser, self.optimiser_config, self.total_steps())
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips to `optimiser.clip_norm`, unless the trainer was told another bound.

        By torch itself: pytorch-lightning refuses to clip for a fused optimiser under mixed precision, which is right
        only where gradients are scaled (float16), and there the optimiser is not fused.
        """
        if gradient_clip_algorithm == "value" and gradient_clip_val is not None:
            clip_grad_value_(self.parameters(), gradient_clip_val)
            return
        bound = self.optimiser_config.clip_norm if gradient_clip_val is None else gradient_clip_val
        clip_grad_norm_(self.parameters(), bound)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the model's configuration, as plain JSON, and the state of torch's random numbers, for DropPath."""
        checkpoint[self.MODEL.KIND] = self.model.config.to_json()
        checkpoint["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            checkpoint["random_cuda"] = torch.cuda.get_rng_state(self.device)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another model, in one sentence.

        Settings `OF_USE` may differ; which do is said.

        Raises:
            ValueError: naming the settings that differ
        """
        kind, noun = self.MODEL.KIND, self.NOUN
        if kind not in checkpoint:
            raise ValueError(f"the checkpoint is not of a {noun}")
        saved = _flat(json.loads(self.MODEL.CONFIG.from_json(checkpoint[kind]).to_json()))
        own = _flat(json.loads(self.model.config.to_json()))
        other = {
            name: f"{name} {saved.get(name)} instead of {own.get(name)}"
            for name in own | saved
            if saved.get(name) != own.get(name)
        }
        if refused := [words for name, words in other.items() if name not in self.OF_USE]:
            raise ValueError(f"the checkpoint is of another {noun}: {', '.join(refused)}")
        if untold := [words for words in other.values() if words not in self._told]:
            self._told |= set(untold)
            say(f"the checkpoint's {noun} had {', '.join(untold)}; the latter holds now")
        self._random = {name: checkpoint[name] for name in ("random", "random_cuda") if name in checkpoint}

    @override
    def on_train_start(self) -> None:
        """Goes on with the random numbers of a loaded checkpoint."""
        if "random" in self._random:
            torch.set_rng_state(self._random["random"].cpu())
        if "random_cuda" in self._random and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._random["random_cuda"].cpu(), self.device)

    def logs_now(self) -> bool:
        """Whether what is logged in this training step is written: in the trainer's every `log_every_n_steps`-th.

        Always where there is no trainer, and the steps are driven from outside.
        """
        if self._trainer is None:
            return True
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # not declared, but always there
        return (self.trainer.global_step + 1) % max(1, every) == 0

    def report(self, table: str, record: dict[str, Any]) -> None:
        """Prints what `test` found, and writes it as test.json where the trainer writes.

        Args:
            table: the text
            record: the same as plain numbers
        """
        if not self.trainer.is_global_zero:
            return
        sys.stdout.write(f"\n{table}\n")
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test.json").write_text(json.dumps(record, indent=1) + "\n")
        sys.stdout.write(f"the same as numbers in {folder / 'test.json'}\n")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of settings as `encoder.dim`."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def begin(
    kind: type[Model],
    network: HitModelConfig,
    *,
    backend: str = "auto",
    compile: bool = False,  # noqa: A002
    weights: str | None = None,
) -> Model:
    """The model that a training begins with.

    Args:
        kind: its class
        network: its configuration
        backend: attention kernel
        compile: compile the encoder
        weights: begin with these instead of random ones: a .safetensors file, whose configuration replaces `network`

    Raises:
        FileNotFoundError: no such weights
        ValueError: the file holds something else
    """
    model = kind(network, backend=backend) if weights is None else kind.load(weights, backend=backend).train()
    if compile:
        model.encoder.compile(dynamic=True, fullgraph=True)  # else it may go on without being compiled, in silence
    return model


def read_checkpoint(path: str | Path, kind: type[HitModel] = HitFilter) -> dict[str, Any]:
    """What a training checkpoint (.ckpt) of a model holds, on the CPU.

    Args:
        path: of the file
        kind: the model's class

    Raises:
        FileNotFoundError: there is no such file
        ValueError: the file is something else
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    other = f"{path} is no checkpoint of a {kind.CONFIG.title}"
    if not is_zipfile(path):
        raise ValueError(other)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError) as error:
        raise ValueError(other) from error
    if not isinstance(checkpoint, dict) or kind.KIND not in checkpoint:
        raise ValueError(other)
    return checkpoint


@overload
def load_checkpoint(path: str | Path, *, backend: str = "auto") -> HitFilter: ...
@overload
def load_checkpoint(path: str | Path, kind: type[Model], *, backend: str = "auto") -> Model: ...
def load_checkpoint(path: str | Path, kind: type[HitModel] = HitFilter, *, backend: str = "auto") -> HitModel:
    """The model in a training checkpoint (.ckpt), in evaluation mode, on the CPU.

    Args:
        path: of the file
        kind: the model's class: `HitFilter` or `MaskFormer`
        backend: attention kernel

    Raises:
        FileNotFoundError: there is no such file
        ValueError: the checkpoint is of something else
    """
    checkpoint = read_checkpoint(path, kind)
    model = kind(kind.CONFIG.from_json(checkpoint[kind.KIND]), backend=backend)
    weights = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    model.load_state_dict(weights)
    return model.eval()


def say(sentence: str) -> None:
    """Tells the user, on stderr, once where several processes train."""
    if getattr(rank_zero_only, "rank", 0) == 0:
        sys.stderr.write(f"{sentence}\n")
