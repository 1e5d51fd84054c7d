"""Annotated videos: one JSONL format for streams (segments.py), and readers of data sets (registry.py)."""
