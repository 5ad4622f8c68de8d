"""Every `wbar …` on a page, also in a sentence, is a command that there is, with options that it has."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest
import typer

import wbar_averaging.commands
import wbar_service.commands
import wbar_worker.commands
from tests.docs.pages import blocks, spans
from wbar.cli import app
from wbar.exports import commands as exports

ENDS = {"|", ";", "&&", "||", ")", ">", ">>", "<", "&"}


def whole() -> click.Command:
    """The command line as the installed program has it."""
    together = typer.Typer()
    together.registered_commands = list(app.registered_commands)
    for room in (wbar_averaging.commands, wbar_service.commands, wbar_worker.commands):
        together.registered_commands += room.app.registered_commands
    together.registered_groups = list(app.registered_groups)
    together.registered_callback = app.registered_callback
    together.add_typer(exports.app, name="export")
    return typer.main.get_command(together)


def typed() -> Iterator[tuple[str, str]]:
    for block in blocks():
        if block.language == "sh":
            for line in block.code.replace("\\\n", " ").splitlines():
                yield from ((block.place, found) for found in re.findall(r"(?:^|[(\s])(wbar [a-z-].*)", line))
    for page, words in spans():
        if re.match(r"wbar [a-z-]", words):
            yield page, words


def words_of(line: str) -> list[str]:
    """The words of one command, up to what ends it; alternatives and what may be left out are words like others."""
    lexer = shlex.shlex(re.sub(r"[\[\]]", " ", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if word in ENDS:
            break
        words.append(word)
    return words


COMMANDS = sorted(set(typed()))


def test_there_are_commands_to_look_at() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("place", "line"), COMMANDS)
def test_the_command_line_has_it(place: str, line: str) -> None:
    command, words = whole(), words_of(line)[1:]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        names = words.pop(0).split("|")
        assert set(names) <= set(command.commands) | {"…"}, f"{place}: {line}"
        if "…" in names:
            return
        command = command.commands[names[0]]
    known = {"--help"} | {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    asked = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert asked <= known, f"{place}: {line}"
