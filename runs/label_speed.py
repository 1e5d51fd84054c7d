"""How long a hundred answers take against the whole label space of Ego4D's LTA: 117 verbs x 521 nouns.

python runs/label_speed.py      # prints one line of JSON: pairs, seconds to build, seconds per hundred answers
"""

from __future__ import annotations

import json
import random
import statistics
import time

from videollm_mod.evaluate.labels import ActionSpace


def main() -> None:
    rng = random.Random(0)

    def word() -> str:
        return "".join(rng.choice("abcdefghijklmnoprstuvw") for _ in range(rng.randint(3, 9)))

    verbs, nouns = [f"{word()}{i}" for i in range(117)], [f"{word()}{i}" for i in range(521)]
    began = time.perf_counter()
    space = ActionSpace(verbs, nouns)
    built = time.perf_counter() - began
    taken = []
    for _ in range(5):
        texts = [f"{rng.choice(verbs)[:-1]} the {rng.choice(nouns)}x" for _ in range(100)]
        began = time.perf_counter()
        space.numbers(texts)
        taken.append(time.perf_counter() - began)
    median = statistics.median(taken)
    result = {"pairs": len(space), "build_seconds": round(built, 3), "seconds_per_hundred": round(median, 3)}
    print(json.dumps({"ok": median < 1, **result}))


if __name__ == "__main__":
    main()
