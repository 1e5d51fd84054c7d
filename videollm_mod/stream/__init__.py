"""Streams: one session, many in one engine, frames on their way to them, and the sinks that take what they say."""
