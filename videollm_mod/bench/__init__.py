"""Speed and size, measured: each benchmark compares in one run and prints one JSON object."""
