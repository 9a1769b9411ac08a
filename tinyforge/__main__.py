"""The command ``tinyforge``, which is also ``python -m tinyforge``."""

import signal
import sys


def main() -> None:
    """Run the command. Whoever ends it, and be it while Python imports, interrupts it: code 130, nothing left."""
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
        from tinyforge.allocator import keep_freed_memory
        from tinyforge.cli import program

        keep_freed_memory()
        program.main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
