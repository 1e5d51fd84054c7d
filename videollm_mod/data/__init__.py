"""Readers of annotated videos: own.py one's own, as JSONL."""
