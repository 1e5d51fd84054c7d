"""OVO-Bench (arXiv 2501.05510, github.com/JoeLeelyf/OVO-Bench): ovo_bench_new.json, 1,640 items over 644 videos.

Backward tracing and real-time perception ask for a letter at one time. Forward responding asks again and again whether
it can be answered by now (CRR, SSR: yes or no) or how often something happened (REC: a number). All questions of a
video are put to one stream, each at its time and aside, so that no question hears of another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from videollm_mod.data.reading import Source, as_written, number, seconds, sentence
from videollm_mod.data.segments import Segment, Stream

FILE = "ovo_bench_new.json"
GROUPS = {
    "backward": ("EPM", "ASI", "HLD"),
    "real_time": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "forward": ("REC", "SSR", "CRR"),
}
# What is asked, as the benchmark prescribes it, letter by letter (constant.py and utils/OVOBench.py there)
CHOICE = (
    "\nQuestion: {}\nOptions:\n{}\n\n"
    "Respond only with the letter corresponding to your chosen option (e.g., A, B, C). \n"
    "Do not include any additional text or explanation in your response.\n"
)
COUNT = (
    "\nYou're watching a video in which people may perform a certain type of action repetively. \n"
    "The person performing this kind of action are referred to as 'they' in the following statement.\n"
    "You're task is to count how many times have different people in the video perform this kind of action in "
    "total.\nOne complete motion counts as one. \nNow, answer the following question: How many times did they {}?\n"
    "Provide your answer as a single number (e.g., 0, 1, 2, 3…) indicating the total count.\n"
    "Do not include any additional text or explanation in your response.\n"
)
STEP = (
    "\nYou're watching a tutorial video which contain a sequential of steps. \n"
    "The following is one step from the whole procedures: \n{}\n"
    "Your task is to determine if the man or woman in the video is currently performing this step.\n"
    "Answer only with “Yes” or “No”.\nDo not include any additional text or explanation in your response.\n"
)
ENOUGH = (
    "\nYou're responsible of answering questions based on the video content. \n"
    "The following question are relevant to the latest frames, i.e. the end of the video.\n{}\n"
    "Decide whether existing visual content, especially latest frames, i.e. frames that near the end of the video, "
    "provide enough information for answering the question.\nAnswer only with “Yes” or “No”.\n"
    "Do not include any additional text or explanation in your response.\n"
)


def read_ovo_bench(source: Source) -> Iterator[Stream]:
    """One stream a video, up to its last question."""
    videos: dict[str, list[tuple[float, str, str, dict[str, Any]]]] = {}
    for place, item in enumerate(source.json(FILE, of=list)):
        with source.record(FILE, item.get("id", place) if isinstance(item, dict) else place):
            videos.setdefault(sentence(item["video"], "its video"), []).extend(_questions(item))
    for video, questions in videos.items():
        if not questions:
            continue
        found = source.place(video.rsplit(".", 1)[0])
        if found is None:
            continue
        questions.sort(key=lambda one: one[0])
        end = questions[-1][0]
        texts: list[Segment] = []
        for time, question, answer, meta in questions:
            texts += [Segment("user", time, text=question), Segment("assistant", time, text=answer, meta=meta)]
        about = {"data": source.name, "split": source.split, "video": video}
        yield Stream(
            video, (Segment("stream", start=0.0, end=end), *texts), fps=source.fps, duration=None, meta=about, **found
        )


def _questions(item: dict[str, Any]) -> list[tuple[float, str, str, dict[str, Any]]]:
    """(time, question, true answer, meta) of all that an item asks."""
    task = item["task"]
    if task not in {name for group in GROUPS.values() for name in group}:
        raise ValueError(f"its task is {task!r}, none of OVO-Bench's")
    meta = {"task": task, "item": item["id"], "style": "ovo"}
    if task not in GROUPS["forward"]:
        options = [str(option) for option in item["options"]]
        right = number(item["gt"], "gt")
        if right >= len(options):
            raise ValueError(f"its gt is {right}, and it has {len(options)} options")
        listed = "; ".join(f"{chr(65 + place)}. {option}" for place, option in enumerate(options)) + ";"
        question = CHOICE.format(as_written(item["question"], "its question"), listed)
        return [(seconds(item["realtime"]), question, chr(65 + right), meta | {"options": options})]
    found = []
    for test in item["test_info"]:
        time = seconds(test["realtime"])
        if task == "REC":
            asked = COUNT.format(as_written(item["activity"], "its activity"))
            found.append((time, asked, str(test["count"]), meta | {"count": number(test["count"], "count")}))
            continue
        yes = bool(number(test["type"], "type"))
        if task == "SSR":
            asked = STEP.format(as_written(test["step"], "its step"))
        else:
            asked = ENOUGH.format(as_written(item["question"], "its question"))
        found.append((time, asked, "Yes" if yes else "No", meta | {"yes": yes}))
    return found
