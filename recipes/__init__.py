"""Runs as Python functions: each returns its whole configuration. `videollm-mod train NAME` looks here."""
