"""What goes along with tokens (an encoding, angles) comes through the same door as they did."""

import torch
from torch import Tensor

from hepattn.attention.doors import Sequences, enter
from hepattn.sequence import Packed


def enter_beside(
    given: Sequences | None, tokens: Packed, valid: Tensor | None, channels: int, owner: str
) -> Tensor | None:
    """The packed form (T, channels) of what was given in the form of the tokens; None stays None.

    Args:
        given: in the form that the tokens had (Packed, padded, nested); beside Packed tokens also a tensor
            (T, channels), in their order.
        tokens: the tokens, packed.
        valid: (B, N) of the tokens where they were padded.
        channels: that are expected.
        owner: who asks, for the message.

    Raises:
        TypeError, ValueError: another form, number of channels, or other lengths than the tokens have.
    """
    if given is None:
        return None
    if isinstance(given, Tensor) and not given.is_nested and given.ndim == 2:
        given = Packed(given, tokens.lengths)
    packed, _ = enter(given, valid, channels, owner)
    if not torch.compiler.is_compiling() and not torch.equal(packed.lengths, tokens.lengths):
        rows, wanted = packed.lengths.tolist(), tokens.lengths.tolist()
        raise ValueError(
            f"{owner} got events of {rows[:6]} rows beside events of {wanted[:6]} tokens: give one row for each token."
        )
    return packed.values
