"""Learned tokens among the hits: registers between them for local attention, global registers, and CLS tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hepattn.masks import GlobalTokens, Mask
from hepattn.sequence import Layout, Role, run_of

__all__ = ["ExtraTokens", "Inserted", "Role", "spread"]


@dataclass(frozen=True, eq=False)
class Inserted:
    """Where hits and learned tokens stand in the longer sequence; it depends on the events' lengths alone.

    Made by `ExtraTokens.plan`, outside of a graph, and handed into it like a layout. T hits and B events become T'
    tokens; all places count among these T' packed tokens.

    Attributes:
        layout: the events with the tokens in them; its `roles` say what each token is.
        hits: `(T,)` int64, ascending: the place of every hit.
        registers: `(R,)` int64, ascending: the place of every interspersed register.
        before: `(R,)` int64: the hit that each register follows, counted among the T hits.
        cls: `(B, C)` int64: the places of each event's CLS tokens.
        global_registers: `(B, G)` int64: the places of each event's global registers.
        role: `(T',)` uint8: the `Role` of every token.
    """

    layout: Layout
    hits: Tensor
    registers: Tensor
    before: Tensor
    cls: Tensor
    global_registers: Tensor
    role: Tensor


class ExtraTokens(nn.Module):
    """Puts learned tokens among the hits of each event, and takes them out again.

    *Registers* (arXiv:2309.16588) give attention a place to put what belongs to no hit. With a local window a few
    tokens at the start would be out of most hits' sight; so they are interspersed: one after every `every` hits, the
    last after the last hit, ceil(n / every) in an event of n hits. Their number depends on the event, so all are the
    same learned vector; what tells them apart is what stands around them. *CLS tokens* and *global registers* have a
    vector each and stand at the start of the event; they attend to all and all attend to them, see `mask`. An event
    without hits has these alone. With cls=1, global_registers=1, every=2 an event of five hits becomes::

        C G h h R h h R h R

    Hits keep their order (of φ), events their borders, and a circular window closes over the longer sequence. A window
    counts tokens of the longer sequence: that of a hit then holds registers, too, and fewer hits. `smallest_window`
    says from which size on each token sees a register.

    ```python
    extra = ExtraTokens(64, cls=1, every=32)
    inserted = extra.plan(layout)                       # once a batch, outside of a graph
    y = extra.insert(x, inserted)                       # (T, 64) -> (T', 64)
    y = layers(y, inserted.layout, extra.mask(Window(128, wrap=True)))
    x, event = extra.remove(y, inserted), extra.cls(y, inserted)        # (T, 64), (B, 1, 64)
    ```

    Inside a graph take `inserted.layout.entered(len(y))`. A `DistanceBias` counts tokens, too: one that falls with
    distance hides the tokens at the start from hits that are far from it.

    Args:
        dim: channels of a token.
        cls: C, CLS tokens of an event.
        global_registers: G, global registers of an event.
        every: hits between interspersed registers; None: no such registers.

    Raises:
        ValueError: a number is negative, dim or every is less than one, or nothing is asked for.
    """

    def __init__(self, dim: int, *, cls: int = 0, global_registers: int = 0, every: int | None = None) -> None:
        super().__init__()
        if dim < 1 or cls < 0 or global_registers < 0 or (every is not None and every < 1):
            raise ValueError(
                f"ExtraTokens got dim={dim}, cls={cls}, global_registers={global_registers}, every={every}: give "
                "dim and every of at least 1 (every=None: no registers between hits), the others of at least 0."
            )
        if not cls and not global_registers and every is None:
            raise ValueError("ExtraTokens got no token to insert: give cls=, global_registers= or every=.")
        self.dim = dim
        self.every = every
        self.num_cls = cls
        self.num_global_registers = global_registers
        self.cls_tokens = _learned(cls, dim)
        self.global_tokens = _learned(global_registers, dim)
        self.register_token = _learned(0 if every is None else 1, dim)

    @property
    def at_start(self) -> int:
        """C + G, the global tokens at the start of each event."""
        return self.num_cls + self.num_global_registers

    def plan(self, layout: Layout) -> Inserted:
        """Where everything stands for events of `layout` (hits alone); kept in the layout's cache.

        Its number of tokens must be known on the host. Inside a graph that is so for one event, or without `every`;
        for several events plan outside of it and hand the plan in.

        Raises:
            ValueError: the layout holds learned tokens already.
            RuntimeError: inside a graph, registers between the hits of several events.
        """
        if layout.roles is not None:
            raise ValueError(
                "ExtraTokens got a layout in which learned tokens stand already: give the layout of the hits alone."
            )
        key = ("inserted", self.num_cls, self.num_global_registers, self.every)
        return layout.cached(key, lambda: self._plan(layout))

    def _plan(self, layout: Layout) -> Inserted:
        start, every = self.at_start, self.every
        hits, events, device = layout.total, layout.batch, layout.device
        if every is None:
            added, total = torch.zeros_like(layout.lengths), hits + events * start
        else:
            added = _runs(layout.lengths, every)
            if not torch.compiler.is_compiling():
                total = hits + events * start + int(added.sum())
            elif events == 1:
                total = hits + start + (hits + every - 1) // every
            else:
                raise RuntimeError(
                    f"ExtraTokens can't plan registers between the hits of {events} events inside torch.compile: "
                    "call plan outside of the graph and hand the plan in."
                )
        longer = Layout.of(layout.lengths + added + start, device, total=total)
        first, event, position = longer.offsets[:-1] + start, layout.event, layout.position
        place = first[event] + position
        if every is None:
            registers = before = place.new_zeros(0)
        else:
            place = place + position // every
            n = layout.offsets.diff()
            ends = torch.cat([n.new_zeros(1), _runs(n, every).cumsum(0)])
            run = torch.arange(total - hits - events * start, device=device)
            owner = run_of(ends, run)
            run = run - ends[owner]
            passed = torch.minimum((run + 1) * every, n[owner])  # hits of the event that stand before the register
            registers, before = first[owner] + passed + run, layout.offsets[owner] + passed - 1
        at_start = longer.offsets[:-1, None] + torch.arange(start, device=device)
        cls, global_registers = at_start.split([self.num_cls, self.num_global_registers], dim=1)
        role = torch.full((total,), int(Role.HIT), dtype=torch.uint8, device=device)
        learned = {Role.REGISTER: registers, Role.GLOBAL_REGISTER: global_registers, Role.CLS: cls}
        for kind, places in learned.items():
            role = role.index_fill(0, places.flatten(), int(kind))
        layout = Layout(longer.lengths, longer.offsets, total, role)
        return Inserted(layout, place, registers, before, cls, global_registers, role)

    def insert(self, x: Tensor, inserted: Inserted) -> Tensor:
        """The hits x (T, dim) with the learned tokens among them: (T', dim) in the dtype of x.

        Raises:
            ValueError: x has another shape, or the plan is that of other tokens.
        """
        self._check(inserted)
        if x.shape != (inserted.hits.shape[0], self.dim):
            raise ValueError(
                f"ExtraTokens got hits {tuple(x.shape)}, expected {(inserted.hits.shape[0], self.dim)}: give the hits "
                "of the layout that was planned for."
            )
        events = inserted.cls.shape[0]
        places, tokens = [inserted.hits], [x]
        if self.register_token is not None:
            places.append(inserted.registers)
            tokens.append(self.register_token.expand(inserted.registers.shape[0], -1).to(x.dtype))
        for learned, place in (
            (self.cls_tokens, inserted.cls),
            (self.global_tokens, inserted.global_registers),
        ):
            if learned is not None:
                places.append(place.flatten())
                tokens.append(learned.expand(events, -1, -1).flatten(0, 1).to(x.dtype))
        longer = x.new_zeros(inserted.role.shape[0], self.dim)
        return longer.index_copy(0, torch.cat(places), torch.cat(tokens))

    def remove(self, y: Tensor, inserted: Inserted) -> Tensor:
        """The hits of y (T', channels): (T, channels), in their order.

        Raises:
            ValueError: y has another number of tokens.
        """
        _check_longer(y, inserted)
        return y.index_select(0, inserted.hits)

    def cls(self, y: Tensor, inserted: Inserted) -> Tensor:
        """The CLS tokens of y (T', channels): (B, C, channels).

        Raises:
            ValueError: y has another number of tokens, or the plan is that of other tokens.
        """
        self._check(inserted)
        _check_longer(y, inserted)
        return y[inserted.cls]

    def mask(self, mask: Mask | None) -> Mask | None:
        """The mask of the longer sequence: `mask | GlobalTokens([0 ... C + G - 1])`; None (all at all) stays None.

        Positions in `mask` count in the longer sequence. `Window(2)` with cls=1, every=2 and three hits, C h h R h R::

            1 1 1 1 1 1
            1 1 1 0 0 0
            1 1 1 1 0 0
            1 0 1 1 1 0
            1 0 0 1 1 1
            1 0 0 0 1 1
        """
        return mask if mask is None or not self.at_start else mask | GlobalTokens(range(self.at_start))

    def smallest_window(self, *, wrap: bool = False) -> int | None:
        """The smallest w with which every token of every event that has hits sees an interspersed register.

        That is `Window(w, wrap)`, of whatever lengths the events are; None without interspersed registers. The first
        hit of an event is `every` tokens away from the first register, so that w = 2 every. On a ring it has the last
        register of the event behind it, and the C + G global tokens between, so that half the way round is enough:
        w = 2 ((every + 1 + min(C + G, every - 1)) // 2).
        """
        if self.every is None:
            return None
        half = (self.every + 1 + min(self.at_start, self.every - 1)) // 2 if wrap else self.every
        return 2 * half

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"dim={self.dim}, cls={self.num_cls}, global_registers={self.num_global_registers}, every={self.every}"

    def _check(self, inserted: Inserted) -> None:
        found = (inserted.cls.shape[1], inserted.global_registers.shape[1])
        if found != (self.num_cls, self.num_global_registers):
            raise ValueError(
                f"ExtraTokens got a plan of {found[0]} CLS tokens and {found[1]} global registers an event, and has "
                f"{self.num_cls} and {self.num_global_registers}: plan with the module that inserts."
            )


def spread(beside: Tensor, inserted: Inserted, *, between: bool) -> Tensor:
    """What goes along with hits (angles of a rotation, an encoding), made as long as the sequence: (T, P) -> (T', P).

    Global tokens get zeros: no encoding, and a rotation by nothing, so that a score of a hit and a global token depends
    on the hit's own angles and not on a difference of two.

    Args:
        beside: a row for each hit.
        inserted: the plan.
        between: True: an interspersed register gets the row of the hit before it, so that angles stay in the order of
            φ. False: zeros.

    Raises:
        ValueError: there is not one row for each hit.
    """
    if beside.ndim != 2 or beside.shape[0] != inserted.hits.shape[0]:
        raise ValueError(
            f"spread got {tuple(beside.shape)}, expected {inserted.hits.shape[0]} rows: give one row for each hit."
        )
    places, rows = inserted.hits, beside
    if between:
        places = torch.cat([places, inserted.registers])
        rows = torch.cat([rows, beside.index_select(0, inserted.before)])
    return beside.new_zeros(inserted.role.shape[0], beside.shape[1]).index_copy(0, places, rows)


def _learned(count: int, dim: int) -> nn.Parameter | None:
    """`(count, dim)`, normal with a standard deviation of 0.02 as in ViT; None where there are none."""
    return nn.Parameter(0.02 * torch.randn(count, dim)) if count else None


def _runs(lengths: Tensor, every: int) -> Tensor:
    """ceil(n / every)."""
    return (lengths + every - 1) // every


def _check_longer(y: Tensor, inserted: Inserted) -> None:
    if y.shape[0] != inserted.role.shape[0]:
        raise ValueError(
            f"ExtraTokens got {y.shape[0]} tokens, expected {inserted.role.shape[0]}: give the sequence with the "
            "learned tokens in it."
        )
