"""Outputs are whole or absent: text files, and videos written frame by frame."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from videollm_mod.files import atomic_write, check_writable
from videollm_mod.types import InputError
from videollm_mod.video import VideoWriter, open_video


def picture(height: int = 48, width: int = 64, level: int = 128) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def test_a_text_file_appears_when_its_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with atomic_write(path) as file:
        file.write("Grüße\n")
        assert not path.exists()
    assert path.read_bytes() == "Grüße\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["events.jsonl"]


def test_an_exception_leaves_no_file_and_an_older_one_untouched(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("kept")
    for path in (old, new):
        with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
            file.write("half")
            raise ZeroDivisionError
    assert old.read_text() == "kept"
    assert [file.name for file in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("keep", [False, True])
def test_ctrl_c_keeps_a_file_of_whole_lines_only_if_told_to(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "events.jsonl"
    with pytest.raises(KeyboardInterrupt), atomic_write(path, keep_on_interrupt=keep) as file:
        file.write("{}\n")
        raise KeyboardInterrupt
    assert path.exists() is keep
    assert len(list(tmp_path.iterdir())) == keep


def test_bytes_can_be_written_too_and_permissions_of_the_old_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with atomic_write(path, binary=True) as file:
        file.write(b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_device_is_written_to_and_not_replaced() -> None:
    with atomic_write("/dev/null") as file:
        file.write("gone")
    assert Path("/dev/null").is_char_device()


def test_an_output_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, mend in [
        (tmp_path, "name of a file"),
        (tmp_path / "no" / "out.txt", "create it first"),
        (tmp_path / "file" / "out.txt", f"{tmp_path / 'file'} is a file; give a name in a folder."),
    ]:
        with pytest.raises(InputError, match=mend):
            check_writable(path)
        with pytest.raises(InputError, match=mend), atomic_write(path):
            raise AssertionError("the block must not begin")
    with pytest.raises(InputError):
        check_writable("/proc/out.txt")
    assert check_writable(tmp_path / "fine.txt") == tmp_path / "fine.txt"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("height", "width"), [(48, 64), (49, 64), (48, 63), (1, 1), (101, 35)])
def test_a_written_video_comes_back_with_its_pictures_and_times(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 10, crf=10) as writer:
        for number in range(12):
            writer.write(picture(height, width, 20 * number))
        assert not path.exists()
    with open_video(path, fps=None) as video:
        frames = list(video)
        assert (video.height, video.width) == (height + height % 2, width + width % 2)
        assert video.duration == pytest.approx(1.2)
        assert video.warnings == []
    assert [frame.time for frame in frames] == pytest.approx([number / 10 for number in range(12)])
    for number, frame in enumerate(frames):
        assert abs(frame.image.astype(int) - 20 * number).max() <= 3


def test_colours_come_back_whatever_the_size(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 60, 30)]
    for height, width in [(96, 128), (720, 1280)]:
        with VideoWriter(tmp_path / "out.mp4", 2, crf=5) as writer:
            for colour in colours:
                writer.write(np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)))
        with open_video(tmp_path / "out.mp4") as video:
            for colour, frame in zip(colours, video, strict=True):
                assert abs(frame.image[height // 2, width // 2].astype(int) - colour).max() <= 4


def test_frames_can_be_written_at_times_of_their_own(tmp_path: Path) -> None:
    times = [5.0, 5.1, 5.5, 8.0, 8.3]
    with VideoWriter(tmp_path / "out.mp4", 2) as writer:
        for time in times:
            writer.write(picture(), time=time)
    with open_video(tmp_path / "out.mp4", fps=None) as video:
        assert [frame.time for frame in video] == pytest.approx([time - 5.0 for time in times])
        assert video.duration == pytest.approx(3.8)  # the last one is shown for 1 / fps


def test_the_index_stands_in_front_and_the_pixels_are_what_every_player_knows(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 10) as writer:
        for number in range(20):
            writer.write(picture(level=number))
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")


def test_ctrl_c_leaves_a_valid_video(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "out.mp4", 4) as writer:
        for _ in range(6):
            writer.write(picture())
        raise KeyboardInterrupt
    with open_video(tmp_path / "out.mp4", fps=None) as video:
        assert len(list(video)) == 6
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_or_no_frame_leaves_no_video(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "error.mp4", 4) as writer:
        writer.write(picture())
        raise ZeroDivisionError
    with VideoWriter(tmp_path / "nothing.mp4", 4):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    for path, fps in [
        (tmp_path / "no" / "out.mp4", 2),
        (tmp_path / "out.avi", 2),
        (tmp_path / "out.mp4", 0),
        (tmp_path / "out.mp4", float("nan")),
    ]:
        with pytest.raises(InputError):
            VideoWriter(path, fps)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_another_size_type_or_an_earlier_time_is_an_error(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", 2) as writer:
        writer.write(picture(), time=1.0)
        with pytest.raises(ValueError, match="pictures of"):
            writer.write(picture(50))
        with pytest.raises(ValueError, match="uint8"):
            writer.write(picture().astype(np.float32))
        with pytest.raises(ValueError, match="does not lie after"):
            writer.write(picture(), time=1.0)
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(picture())


def test_a_full_disk_is_an_input_error_and_leaves_nothing() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(OSError, match="space"), atomic_write(full) as file:
        file.write("x" * 100_000)


def images(folder: Path, count: int) -> None:
    for number in range(count):
        Image.new("RGB", (20, 10), (60, 60, 60)).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("misnamed", "told"),
    [
        ([], None),
        (["a.png"], "1 file that is only named like an image was left out: a.png"),
        (["a.png", "b.JPG"], "2 files that are only named like images were left out, the first: a.png"),
    ],
)
def test_a_text_file_named_like_an_image_is_left_out_with_a_warning(
    tmp_path: Path, misnamed: list[str], told: str | None
) -> None:
    images(tmp_path, 2)
    for name in [*misnamed, "notes.txt", ".hidden.png"]:  # of the last two nobody expects a picture
        (tmp_path / name).write_text("no image at all")
    with open_video(tmp_path) as video:
        assert len(list(video)) == 2
        assert video.warnings == ([f"{tmp_path}: {told}"] if told else [])


def test_a_folder_of_misnamed_files_only_is_refused_by_the_name_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image at all")
    with pytest.raises(InputError, match=r"holds no image \(a\.png is only named like one\)"):
        open_video(tmp_path)


def test_what_is_damaged_is_counted_in_the_singular_and_in_the_plural(tmp_path: Path) -> None:
    images(tmp_path, 3)
    for number, told in [(1, "1 image was left out: "), (2, "2 images were left out, the first: ")]:
        (tmp_path / f"{number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes()[:40])
        with open_video(tmp_path) as video:
            list(video)
        assert len(video.warnings) == 1 and told in video.warnings[0] and "1.png" in video.warnings[0]


def test_the_only_image_of_a_folder_is_refused_for_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image"):
        open_video(tmp_path)
