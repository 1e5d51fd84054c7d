"""One stream: the session, and the sinks that take what it says."""
