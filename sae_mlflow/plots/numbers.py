"""Numbers as pictures write them."""

import math
from collections.abc import Sequence

_ROUND_TICKS = 7  # after the first one, at most


def number_text(value: float, digits: int = 4) -> str:
    """A number as ticks and labels show it: `0.2534`, `12,500`, `1.2e-5`."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    if 1e4 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def ranges(numbers: Sequence[int], limit: int = 4) -> str:
    """`[4, 5, 6, 9]` as `4-6, 9`; no more than `limit` parts."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    shown = [str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts]
    more = [f"and {len(shown) - limit} more"] if len(shown) > limit else []
    return ", ".join(shown[:limit] + more)


def whole_ticks(first: int, last: int, most: int = 10) -> list[int]:
    """Whole-number ticks from `first`: all where they are few, else round ones after the first.

    Where no round one is left, the last.

    Args:
        most: that have room.
    """
    if last - first < most:
        return list(range(first, last + 1))
    rough = (last - first) / max(1, min(_ROUND_TICKS, most - 1))
    power = 10 ** math.floor(math.log10(rough))
    step = next(s for s in (n * power for n in (1, 2, 5, 10)) if s >= rough)
    step = max(step, 1)
    from_second = first + math.ceil(0.6 * step)  # nearer ones would touch the first one's label
    return [first, *(range(math.ceil(from_second / step) * step, last + 1, step) or [last])]
