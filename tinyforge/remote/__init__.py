"""A bundle on the user's own boards, over OpenSSH: pushed, self-tested, measured, and what was measured brought back.

address.py and argv.py: ssh:// URLs and command lines. connection.py: one connection. facts.py: what a board is, and
whether a bundle fits it. agent.py: the program that runs there. board.py: the whole way, on one board or several.
"""

from .address import Address, parse_address
from .board import Wish, bench_board, bench_boards, bench_options, tidy_board
from .report import boards_text, failure

__all__ = [
    "Address",
    "Wish",
    "bench_board",
    "bench_boards",
    "bench_options",
    "boards_text",
    "failure",
    "parse_address",
    "tidy_board",
]
