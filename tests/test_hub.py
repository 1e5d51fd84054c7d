"""Models by name: what goes to the hub is the folder, what comes back is the model; a hub out of reach is told soon.

There is no network in tests: a small server stands in for the hub and speaks the endpoints that huggingface_hub asks
for, with real sockets. It takes all files as part of the commit; the hub's separate upload of large files (LFS, Xet) is
huggingface_hub's own and is not exercised.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
import torch
from stream_cases import tiny_model

import videollm_mod as vm
from videollm_mod import cli
from videollm_mod.depth import DepthPlan
from videollm_mod.hub import folder_of, is_hub_id
from videollm_mod.types import InputError

SHA = "0123456789abcdef0123456789abcdef01234567"
DEMO = str(Path(vm.__file__).parent / "assets" / "demo.mp4")


class Hub(BaseHTTPRequestHandler):
    """One process's worth of a hub: models are folders of bytes."""

    protocol_version = "HTTP/1.1"
    models: dict[str, dict[str, bytes]]
    commits: list[str]

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.models.setdefault(name, {})
            return self._answer({"url": f"{self._home()}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.commits.append(name)
                else:
                    assert line["value"]["encoding"] == "base64"
                    self.models[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self._home()}/{name}/commit/{SHA}"
            return self._answer({"success": True, "commitOid": SHA, "commitUrl": url, "hookOutput": ""})
        return self._answer({"error": f"not here: {path}"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        files = self.models.get(name)
        if files is None:
            return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if api and "tree" in parts:
            return self._answer(
                [{"type": "file", "path": k, "size": len(v), "oid": _oid(v)} for k, v in sorted(files.items())]
            )
        if api:
            return self._answer({"id": name, "sha": SHA, "siblings": [{"rfilename": k} for k in sorted(files)]})
        path = "/".join(parts[4:])  # owner/name/resolve/revision/path
        if path not in files:
            return self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_oid(files[path])}"', "X-Repo-Commit": SHA}
        return self._send(200, files[path], "application/octet-stream", headers)

    def _chunks(self) -> bytes:
        """A body that comes in chunks."""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers or {})

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _home(self) -> str:
        host, port = self.server.server_address[:2]
        return f"http://{host!s}:{port}"

    def log_message(self, *args: object) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A running stand-in; huggingface_hub goes there, and caches in a folder of the test."""
    handler = type("OneHub", (Hub,), {"models": {}, "commits": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    _point_at(f"http://127.0.0.1:{server.server_address[1]}", tmp_path, monkeypatch)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub at a port where nobody listens."""
    _point_at("http://127.0.0.1:9", tmp_path, monkeypatch)


def _point_at(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    hosts = constants.HF_URL_HOSTS | {urlsplit(address).netloc, urlsplit(address).hostname}
    monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset(hosts))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_what_is_pushed_is_the_folder_in_one_commit_and_comes_back_by_its_name(hub: type[Hub], tmp_path: Path) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4)).float()
    address = model.push_to_hub("somebody/a-model", token="hf_x", metrics={"event F1": 0.84})
    assert address.endswith("/somebody/a-model")
    assert hub.commits == ["somebody/a-model"]
    model.save_pretrained(tmp_path / "same", metrics={"event F1": 0.84})
    here = {p.relative_to(tmp_path / "same").as_posix(): p.read_bytes() for p in (tmp_path / "same").rglob("*.*")}
    assert hub.models["somebody/a-model"] == here
    assert "| event F1 | 0.84 |" in here["README.md"].decode()
    back = vm.load("somebody/a-model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_a_model_that_was_fetched_once_is_there_when_the_hub_is_not(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["a/b"] = {"config.json": b"{}", "weights.bin": b"a pickle", "original/params.json": b"{}"}
    folder = folder_of("a/b", "model")
    assert [path.name for path in folder.rglob("*")] == ["config.json"], "no pickles, and nothing twice"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert folder_of("a/b", "model") == folder


def test_a_model_that_the_hub_does_not_have_is_told_by_its_name(hub: type[Hub]) -> None:
    with pytest.raises(InputError, match="model 'a/b' is no folder, and the hub has no such model or hides it"):
        vm.load("a/b")


def test_a_hub_out_of_reach_is_told_at_once_in_one_sentence(nowhere: None) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=r"model 'a/b' is no folder, and the hub cannot be reached \(ConnectError\)"):
        vm.load("a/b")
    with pytest.raises(InputError, match="'a/b': the hub cannot be reached"):
        tiny_model(DepthPlan("full")).push_to_hub("a/b")
    assert time.monotonic() - began < 10


def test_the_command_line_leaves_with_2_and_the_sentence(nowhere: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", DEMO, "--model", "owner/no-such-model", "--end", "1"]) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert "model 'owner/no-such-model' is no folder, and the hub cannot be reached" in told
    assert "Traceback" not in told


def test_a_tokenizer_without_an_eos_is_told_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(DepthPlan("full")).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))
    assert cli.main(["watch", DEMO, "--model", str(tmp_path), "--end", "1"]) == cli.BAD_INPUT
    assert "has no EOS token, which ends every reply; set its eos_token" in capsys.readouterr().err


def test_a_name_that_is_no_hub_id_is_not_looked_for_there(tmp_path: Path) -> None:
    assert is_hub_id("owner/name-1.5")
    for name in ("name", "/a/b", "./a/b", "a/b/c", "../a", str(tmp_path)):
        assert not is_hub_id(name)
    with pytest.raises(InputError, match="is no hub id; give owner/name"):
        tiny_model(DepthPlan("full")).push_to_hub("name")
