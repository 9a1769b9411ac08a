"""docs/cli.md, from the program's own help:    python tests/core/cli_reference.py > docs/cli.md"""

from collections.abc import Iterator

import click

from tinyforge.cli import program

HEAD = """# Command line

What `tinyforge COMMAND --help` prints. A test compares this file with it.
"""


def sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """The help of a command and of all below it."""
    context.max_content_width = context.terminal_width = 110
    yield f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            yield from sections(inner, click.Context(inner, info_name=name, parent=context))


def reference() -> str:
    return "\n".join([HEAD, *sections(program, click.Context(program, info_name="tinyforge"))])


if __name__ == "__main__":
    print(reference(), end="")
