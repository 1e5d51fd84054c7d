"""The page's script against a real server, run by Node: the browser proper is in test_serve_browser.py."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from serve_cases import serving, until

import videollm_mod as vm
from videollm_mod.serve.app import SCRIPTS

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "videollm_mod" / "serve" / "page"
CLIP = TESTS.parent / "videollm_mod" / "assets" / "demo.mp4"


def test_the_script_asks_for_nothing_that_the_page_does_not_hold() -> None:
    page, style = (PAGE / "index.html").read_text(), (PAGE / "style.css").read_text()
    assert tuple(re.findall(r'<script src="(\w+)\.js" defer>', page)) == SCRIPTS
    script = "".join((PAGE / f"{name}.js").read_text() for name in SCRIPTS)
    held = re.findall(r' id="([^"]+)"', page)
    assert len(held) == len(set(held))
    assert set(re.findall(r'\$\("([^"]+)"\)', script)) <= set(held)
    assert set(re.findall(r"(?<!&)#([a-z][a-z-]+)\b(?=[ .,{:])", style)) <= set(held)
    labels = set(re.findall(r'<label[^>]* for="([^"]+)"', page)) | {"show-kept", "store", "file"}  # or inside a label
    assert set(re.findall(r'<input[^>]* id="([^"]+)"', page)) <= labels  # every field has a name for who cannot see it


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="no Node here: apt-get install nodejs")
def test_script_and_server_understand_each_other_from_the_first_picture_to_the_export(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for frame in vm.open_video(CLIP, fps=2, start=6.0, end=40.0):
        buffer = io.BytesIO()
        Image.fromarray(frame.image).save(buffer, "JPEG", quality=90)
        (pictures / f"{frame.index:04d}.jpg").write_bytes(buffer.getvalue())
    with serving(tmp_path, model=vm.load("tiny")) as server:
        words = ["node", "--experimental-websocket", str(TESTS / "page_in_node.mjs"), f"{server.url}/", str(pictures)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=2400)
        assert done.returncode == 0, done.stderr[-3000:]
        seen = json.loads(done.stdout.splitlines()[-1])
        until(lambda: not server.hub.live)
        stored = [one.event for one in server.hub.store.events(seen["stream"])]
    narration = [[round(event.time, 3), event.text] for event in stored if event.kind == "narration"]
    assert seen["narration"] == narration[: len(seen["narration"])] and len(narration) >= 2
    answer = next(event for event in stored if event.kind == "answer")
    assert answer.question in seen["answer"] and answer.text in seen["answer"]
    assert len(set(seen["overlays"])) == 3  # all layers, the first, the second
    assert seen["same"] and "goes on in the same stream" in seen["notice"]
    assert "Connection lost" in seen["states"] and seen["states"][-1] in ("Watching", "Ended")
    assert seen["saved"].endswith(".srt") and seen["back"]
