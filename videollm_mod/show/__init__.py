"""Pictures of what a depth-routed model keeps: on one frame, as an annotated video, and as one sheet."""
