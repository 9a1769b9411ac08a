"""The command line: parse, call one function, print. The only folder with click and rich.

running.py runs a command and prints its answer; the other files hold the commands.
"""

from . import build, bundles, catalogue, evaluate, training
from .running import program

__all__ = ["build", "bundles", "catalogue", "evaluate", "program", "training"]
