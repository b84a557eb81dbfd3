"""RoundingAdamW's step for one weight, in Triton: one pass over weight, gradient and moments."""

import triton
import triton.language as tl

QUARTER = tl.constexpr(1024)
"""Elements of a block for each of the four random numbers that are drawn at once."""


@triton.jit
def _rounded(number: tl.tensor, bits: tl.tensor) -> tl.tensor:
    """Round float32 to bf16 by 16 random bits: added to what is cut off, they may carry over."""
    sums = number.to(tl.uint32, bitcast=True) + bits
    whole = (sums & 0xFFFF0000).to(tl.float32, bitcast=True)
    # What is no number would become one.
    return tl.where(number == number, whole, number).to(tl.bfloat16)  # noqa: PLR0124


@triton.jit(do_not_specialize=["place"])
def step(
    weights: tl.tensor,
    gradients: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    numbers: tl.tensor,
    scale: tl.tensor,
    skips: tl.tensor,
    place: tl.tensor,
    size: tl.tensor,
    rate: tl.tensor,
    decay: tl.tensor,
    beta1: tl.tensor,
    beta2: tl.tensor,
    epsilon: tl.tensor,
) -> None:
    """Compute in float32 what torch.optim.AdamW documents, and round the results."""
    if tl.load(skips) != 0:
        return
    count = tl.load(numbers)
    of_mean = tl.load(numbers + 1)
    of_square = tl.sqrt(tl.load(numbers + 2))
    scaled = 1 / tl.load(scale)
    block = tl.program_id(0)
    lanes = tl.arange(0, QUARTER)
    drawn = tl.randint4x((count.to(tl.int64) << 32) | place, block * QUARTER + lanes)
    for quarter in tl.static_range(4):
        bits = drawn[quarter].to(tl.uint32, bitcast=True)
        at = (block.to(tl.int64) * 4 + quarter) * QUARTER + lanes
        within = at < size
        gradient = tl.load(gradients + at, within).to(tl.float32) * scaled
        mean = tl.load(means + at, within).to(tl.float32)
        square = tl.load(squares + at, within).to(tl.float32)
        weight = tl.load(weights + at, within).to(tl.float32) * (1 - rate * decay)
        mean += (gradient - mean) * (1 - beta1)
        square = square * beta2 + gradient * gradient * (1 - beta2)
        weight -= rate / of_mean * mean / (tl.sqrt(square) / of_square + epsilon)
        tl.store(weights + at, _rounded(weight, bits & 0xFFFF), within)
        # With beta1 of 0.9 it changes by a tenth of its distance each step, mostly by more than
        # its last bit: the nearest is near enough.
        tl.store(means + at, mean.to(tl.bfloat16), within)
        tl.store(squares + at, _rounded(square, bits >> 16), within)
