"""The script `videollm-mod`, and `python -m videollm_mod`: the command line, quiet about Ctrl-C from the start.

Nothing is imported here that takes time: what Ctrl-C cuts short before `main` begins is told by a traceback.
"""

import sys


def main() -> int:
    """Run the command line; returns the exit code. Every command imports, and none of them may be cut short there."""
    try:
        import signal

        from videollm_mod.pace import catch_interrupts

        with catch_interrupts((signal.SIGINT,)):
            from videollm_mod.cli import main as run

            code = run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and written; Python's last steps take a second of torch
    return code


if __name__ == "__main__":
    sys.exit(main())
