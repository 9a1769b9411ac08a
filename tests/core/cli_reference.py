"""docs/cli.md, from the program's own help:    python tests/core/cli_reference.py > docs/cli.md"""

from collections.abc import Iterator

import click

from tinyforge.cli import program

HEAD = """# Command line

What `tinyforge COMMAND --help` prints. A test compares this file with it.
"""


def sections(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    """The help of a command and of all below it."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    context.max_content_width = context.terminal_width = 110
    yield f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            yield from sections(command.get_command(context, inner), inner, context)


def reference() -> str:
    return "\n".join([HEAD, *sections(program, "tinyforge")])


if __name__ == "__main__":
    print(reference(), end="")
