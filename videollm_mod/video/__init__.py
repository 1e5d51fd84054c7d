"""Pixels in and out: any video source as a stream of RGB frames in time, letterboxing, and writing H.264.

with open_video("clip.mp4", fps=2) as video:
    for frame in video:
        frame.image, frame.time, frame.index     # (height, width, 3) uint8 RGB, seconds, 0-based
"""

from videollm_mod.video.letterbox import letterbox, letterbox_box
from videollm_mod.video.source import VideoSource, open_video
from videollm_mod.video.writer import VideoWriter

__all__ = ["VideoSource", "VideoWriter", "letterbox", "letterbox_box", "open_video"]
