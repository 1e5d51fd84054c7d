"""A world stream as the conversation that training teaches and evaluation compares with: typed dialogue segments.

    System · Stream(n) · Assistant(narration) · Stream(n) · User(question) · Assistant(answer) · ... · Stream(rest)

A narration follows the frame `event.frame` at once and tells all events of that frame, for a model speaks once a
frame. A question put at frame q follows that frame, after its narration if it has one. Every frame is in exactly one
Stream, in order.
"""

from __future__ import annotations

from videollm_mod.dialogue import Assistant, Segment, Stream, System, User
from videollm_mod.world.narrated import Narrated, narrations


def segments(stream: Narrated, system: str) -> list[Segment]:
    """The stream's true conversation, for `StreamTemplate.encode`; `system` is what the model is told first."""
    spoken: dict[int, list[Segment]] = {}  # frame -> what is said after it
    for narration in narrations(stream):
        spoken[narration.frame] = [Assistant(narration.text)]
    for question in stream.questions:
        spoken.setdefault(question.frame, []).extend([User(question.question), Assistant(question.answer)])
    conversation: list[Segment] = [System(system)]
    watched = 0  # frames so far
    for frame in sorted(spoken):
        conversation.append(Stream(frame + 1 - watched))
        conversation.extend(spoken[frame])
        watched = frame + 1
    if len(stream.times) > watched:
        conversation.append(Stream(len(stream.times) - watched))
    return conversation
