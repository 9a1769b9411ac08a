"""``python -m tinyforge`` is the command ``tinyforge``."""

from tinyforge.cli import main

if __name__ == "__main__":
    main()
