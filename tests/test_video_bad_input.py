"""What is wrong with a source is said in one sentence that names it and the mend, and nothing foreign is opened."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_cases import TENTHS, Handler, serving, write_empty, write_sound, write_video

from videollm_mod.types import InputError
from videollm_mod.video import decode, images, open_video, source


def refusal(what: str | Path, **options: float) -> str:
    """The InputError that opening (or else reading) it raises: one line with the thing and the mend."""
    with pytest.raises(InputError) as caught, open_video(what, **options) as video:
        list(video)
    message = str(caught.value)
    assert "\n" not in message and "; " in message and message.endswith(".")
    return message


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", TENTHS)


def test_a_missing_file_or_an_empty_name(tmp_path: Path) -> None:
    assert "no video at" in refusal(tmp_path / "none.mp4") and "none.mp4" in refusal(tmp_path / "none.mp4")
    assert "names no video" in refusal("")
    assert "names no video" in refusal("a\0b")
    assert "no video at" in refusal("x" * 5000)


TEXTS = {
    "notes.txt": "Frames and more frames.\n" * 500,
    "film.srt": "1\n00:00:01,000 --> 00:00:02,000\nHello\n",
    "page.mp4": "<!DOCTYPE html><html><body>not found</body></html>",
    "data.json": '{"a": [1, 2, 3]}' * 100,
    "x.ans": "\x1b[31mred\x1b[0m\n" * 50,
    "tab.csv": "a,b\n1,2\n",
    "zeros.mp4": "\0" * 100_000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_file_is_no_video(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TEXTS[name])
    assert "is not a video" in refusal(tmp_path / name)


def test_random_bytes_are_no_video(tmp_path: Path) -> None:
    for seed in range(5):
        (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(seed).bytes(50_000))
        assert "noise.mp4" in refusal(tmp_path / "noise.mp4")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert "is empty" in refusal(tmp_path / "empty.mp4")


@pytest.mark.parametrize(
    ("name", "codec"), [("a.wav", "pcm_s16le"), ("a.m4a", "aac"), ("a.mkv", "aac"), ("a.flac", "flac")]
)
def test_a_file_of_sound_alone(tmp_path: Path, name: str, codec: str) -> None:
    assert "holds only sound" in refusal(write_sound(tmp_path / name, codec))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
def test_a_video_without_a_single_picture(tmp_path: Path, suffix: str) -> None:
    assert "holds not a single picture" in refusal(write_empty(tmp_path / f"zero.{suffix}"))


def test_a_video_that_lost_its_index(clip: Path) -> None:
    clip.write_bytes(clip.read_bytes()[:-2000])
    assert "its beginning or index is missing" in refusal(clip)


def test_a_video_of_which_nothing_can_be_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", TENTHS)
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    content[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(content)
    assert "not one picture" in refusal(path)


def test_folders_without_an_image_or_with_broken_ones_only(tmp_path: Path) -> None:
    assert "holds no image" in refusal(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    assert "the only image of" in refusal(tmp_path)


def test_pictures_too_large_to_be_true_are_not_decoded(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    (tmp_path / "folder").mkdir()
    Image.new("L", (100, 100)).save(tmp_path / "folder" / "a.png")
    assert "100 x 100 pixels" in refusal(tmp_path / "folder")
    assert "64 x 48 pixels" in refusal(clip)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), -float("inf")])
def test_rates_that_make_no_sense(clip: Path, fps: float) -> None:
    assert f"fps {fps:g}" in refusal(clip, fps=fps)


def test_starts_and_ends_that_make_no_sense(clip: Path) -> None:
    assert "start -1" in refusal(clip, start=-1)
    assert "start nan" in refusal(clip, start=float("nan"))
    assert "does not lie after" in refusal(clip, start=2, end=2)
    assert "does not lie after" in refusal(clip, end=float("nan"))
    assert "beyond the end" in refusal(clip, start=3)
    assert "shows nothing from 0.6 s to 0.7 s" in refusal(clip, start=0.6, end=0.7, fps=1)


def test_a_start_beyond_the_end_is_told_also_where_no_length_is_known(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", TENTHS)
    assert "shows nothing from 60 s" in refusal(path, start=60)


def test_cameras_that_are_not_there() -> None:
    assert "camera:97 is not there" in refusal("camera:97")
    assert "names no camera" in refusal("camera:front")
    assert "names no camera" in refusal("camera:")


def test_devices_are_not_read_as_files() -> None:
    assert "give camera:0" in refusal("/dev/null")


# --- nothing foreign is opened -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["file", "ftp", "rtmp", "udp", "gopher", "concat", "subfile", "crypto+file", "data"])
def test_other_protocols_are_refused(clip: Path, scheme: str) -> None:
    assert "http://, https://, rtsp://" in refusal(f"{scheme}://{clip}")


@pytest.mark.parametrize("trick", ["concat:{0}", "file:{0}", "cache:{0}", "async:{0}", "subfile,,start,0,end,0,,:{0}"])
def test_protocols_in_disguise_are_names_of_files(clip: Path, trick: str) -> None:
    assert "no video at" in refusal(trick.format(clip))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3.0,\n{0}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{0}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "list.sdp", "list.mp4"])
def test_a_playlist_on_disk_opens_nothing(tmp_path: Path, clip: Path, text: str, name: str) -> None:
    (tmp_path / name).write_text(text.format(clip))
    assert "is not a video" in refusal(tmp_path / name)


def test_a_server_cannot_make_us_read_a_file(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3.0,\nfile://{}\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist.format(clip))

    def redirect(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"file://{clip}")
        handler.end_headers()

    with serving(tmp_path) as server:
        assert "list.m3u8" in refusal(f"{server}/list.m3u8")
        monkeypatch.setattr(Handler, "do_GET", redirect)
        assert "cannot be opened" in refusal(f"{server}/clip.mp4")


def test_addresses_that_give_no_video(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>hello</html>" * 100)
    with serving(tmp_path) as server:
        assert "404" in refusal(f"{server}/none.mp4")
        assert "cannot be opened" in refusal(f"{server}/page.html")
    assert "names no host" in refusal("http://")
    assert "no valid address" in refusal("http://[::1/x.mp4")


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_server_that_never_answers_is_given_up_and_no_password_is_shown(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "NETWORK_TIMEOUT", (0.3, 0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        message = refusal(f"{scheme}://user:secret@127.0.0.1:{silent.getsockname()[1]}/stream")
    assert "user:***@" in message and "secret" not in message
    assert "cannot be opened" in message


def test_a_connection_that_breaks_gives_its_frames_and_then_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "NETWORK_TIMEOUT", (5.0, 0.5))
    content = write_video(tmp_path / "clip.ts", TENTHS * 1, size=(240, 320)).read_bytes()

    def serve(listener: socket.socket, done: threading.Event) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            head = f"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\nContent-Length: {2 * len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            done.wait(20)  # and then nothing more

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener, done))
        thread.start()
        with open_video(f"http://127.0.0.1:{listener.getsockname()[1]}/clip.ts", fps=5) as video:
            times = [frame.time for frame in video]
        done.set()
        thread.join()
    assert len(times) >= 10 and times[0] == 0
    assert len(video.warnings) == 1 and "broke off" in video.warnings[0]


def test_standard_input_needs_something_piped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert "nothing is piped in" in refusal("-")


@pytest.mark.parametrize("make", [lambda: b"", lambda: b"hello\n" * 1000])
def test_a_pipe_without_a_video(tmp_path: Path, make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "piped").write_bytes(make())
    with (tmp_path / "piped").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert "standard input cannot be opened" in refusal("-")
