"""Writes docs/openapi.json and docs/messages.schema.json, and tells whether they are up to date.

python -m videollm_mod.serve.schemas docs            # write
python -m videollm_mod.serve.schemas docs --check    # leave with 1 if they are not as they would be written
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def documents() -> dict[str, str]:
    """File name -> its text."""
    from videollm_mod.serve.app import Server, make_app
    from videollm_mod.serve.auth import Doors
    from videollm_mod.serve.limits import Bounds
    from videollm_mod.serve.protocol import message_schema

    hub: Any = SimpleNamespace(bounds=Bounds())  # the routes are described without a model
    made = {
        "openapi.json": make_app(Server(hub, Doors("127.0.0.1", {}))).openapi(),
        "messages.schema.json": message_schema(),
    }
    return {name: json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in made.items()}


def main(words: list[str]) -> int:
    folder, check = Path(words[0]), "--check" in words
    wrong = []
    for name, text in documents().items():
        path = folder / name
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            wrong.append(name)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if wrong:
        print(f"{', '.join(wrong)} not up to date; run python -m videollm_mod.serve.schemas {folder}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
