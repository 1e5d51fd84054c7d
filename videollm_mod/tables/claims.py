"""What the paper says, each as two cells whose difference would show it."""

from __future__ import annotations

from dataclasses import dataclass

from videollm_mod.tables.cells import KEEPS, MOD


@dataclass(frozen=True)
class Claim:
    """A sentence that is so if `cell` has the higher F1 of the two; or, `even`, at least no clearly lower one."""

    sentence: str
    cell: str
    other: str
    even: bool = False

    def verdict(self, low: float, high: float) -> str:
        """What an interval of the difference in F1 says."""
        if low > 0:
            return "yes"
        if high < 0:
            return "no, the opposite"
        return "no loss seen" if self.even else "not seen"


def all_claims() -> tuple[Claim, ...]:
    """The paper's, and what must be so for the tables to tell anything (the oracle)."""
    claims = [
        Claim(
            "The choice of tokens matters in this world: an oracle beats even spacing",
            "all, oracle 0.2",
            "all, uniform 0.2",
        ),
        Claim("Routing costs no quality, or raises it", MOD, "full", even=True),
        Claim("It beats early exit", MOD, "early-exit"),
        Claim("It beats layer skip", MOD, "layer-skip"),
        Claim("It beats fewer, pooled tokens at 0.9 of its FLOPs", MOD, "full, pooled 4x4"),
        Claim("It beats fewer, pooled tokens at 1.2 of its FLOPs", MOD, "full, pooled 4x5"),
        Claim("Interleaved beats all", MOD, "all"),
        Claim("Interleaved beats all-deep", MOD, "all-deep"),
        Claim("Interleaved is no worse than interleaved-deep", MOD, "interleaved-deep", even=True),
    ]
    for scorer in ("uniform", "random"):
        for keep in KEEPS:
            learned = f"interleaved, learned {keep:g}"
            claims.append(Claim(f"Learned beats {scorer} at r = {keep:g}", learned, f"interleaved, {scorer} {keep:g}"))
        claims.append(Claim(f"Learned beats {scorer} where every layer routes", "all", f"all, {scorer} 0.2"))
    claims += [
        Claim("Ours: experts that learn salience beat experts with a gate's gradient", MOD, "gate straight"),
        Claim("Trained experts beat untrained ones", MOD, "interleaved, untrained 0.2"),
        Claim("Converting a dense model beats routing from scratch", MOD, "from scratch"),
    ]
    return tuple(claims)
