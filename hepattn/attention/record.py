"""Looking into a model: the queries and keys of every attention call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hepattn.attention.bias import DistanceBias
from hepattn.masks import Mask
from hepattn.sequence import Layout


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of one attention module.

    Attributes:
        name: the module's name inside the recorded model, such as "layers.0.attention".
        q: (Tq, H, D), detached, as the kernel got it: after projection and norm.
        k: (Tk, H, D), the same.
        mask: who may look at whom inside an event; None: all at all.
        layout: the queries' events.
        kv_layout: the keys' events; in self-attention the same object as `layout`.
        bias: what was added to the scores, if anything.
    """

    name: str
    q: Tensor
    k: Tensor
    mask: Mask | None
    layout: Layout
    kv_layout: Layout
    bias: DistanceBias | None = None

    @property
    def roles(self) -> Tensor | None:
        """(Tq,) uint8, what each query is, see `hepattn.sequence.Role`; None: no learned tokens stand among them.

        A model tells it by its layout (`Layout.roles`), as `hepattn.layers.ExtraTokens` does.
        """
        return self.layout.roles

    @property
    def kv_roles(self) -> Tensor | None:
        """(Tk,) uint8, the same of each key."""
        return self.kv_layout.roles


Listener = Callable[[Tensor, Tensor, Mask | None, Layout, Layout, DistanceBias | None], None]


class Recordable(nn.Module):
    """A module that tells its listeners about every attention call."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: tuple[Listener, ...] = ()

    def tell(
        self,
        q: Tensor,
        k: Tensor,
        mask: Mask | None,
        layout: Layout,
        kv_layout: Layout,
        bias: DistanceBias | None = None,
    ) -> None:
        """Tells every listener.

        Raises:
            RuntimeError: the model is being compiled, where nothing can be recorded.
        """
        if self.listeners and torch.compiler.is_compiling():
            raise RuntimeError(
                "record_attention cannot look into a compiled model: record the model before compiling it."
            )
        for listener in self.listeners:
            listener(q, k, mask, layout, kv_layout, bias)


@contextmanager
def record_attention(module: nn.Module) -> Iterator[list[AttentionCall]]:
    """Collects the calls of every attention module inside `module`, in the order in which they happen.

    ```python
    with record_attention(encoder) as calls:
        encoder(x)
    first = calls[0]
    attention_weights(first.q, first.k, mask=first.mask, lengths=first.layout, bias=first.bias, rows=[3, 5])
    ```

    The tensors are those of the call, detached, not copies; recording costs no time and keeps them alive.

    Raises:
        ValueError: `module` contains no attention module.
    """
    found = {name: part for name, part in module.named_modules() if isinstance(part, Recordable)}
    if not found:
        raise ValueError(f"{type(module).__name__} contains no Attention: there is nothing to record.")
    calls: list[AttentionCall] = []
    listeners: dict[str, Listener] = {name: partial(_append, calls, name) for name in found}
    for name, part in found.items():
        part.listeners += (listeners[name],)
    try:
        yield calls
    finally:
        for name, part in found.items():
            part.listeners = tuple(one for one in part.listeners if one is not listeners[name])


def _append(
    calls: list[AttentionCall],
    name: str,
    q: Tensor,
    k: Tensor,
    mask: Mask | None,
    layout: Layout,
    kv_layout: Layout,
    bias: DistanceBias | None,
) -> None:
    kept = None if bias is None else DistanceBias(bias.slopes.detach(), bias.wrap)
    calls.append(AttentionCall(name, q.detach(), k.detach(), mask, layout, kv_layout, kept))
