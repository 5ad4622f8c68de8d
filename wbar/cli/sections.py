"""The order of the commands in `wbar --help`: by what one wants to do, the first steps first."""

from typing import TYPE_CHECKING

from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

SECTIONS: dict[str, tuple[str, ...]] = {
    "Begin here": ("demo", "up", "open", "doctor"),
    "What jobs begin with": ("upload", "checkpoints", "datasets"),
    "Make jobs": ("submit", "clone"),
    "Look at jobs": ("jobs", "show", "watch", "logs", "compare"),
    "Take what they made": ("download", "card", "signature", "export", "predict"),
    "Steer jobs": ("cancel", "finish", "pause", "resume", "delete"),
    "Vary a job": ("study",),
    "Merge": ("merges",),
    "Without a service": ("average", "merge", "verify", "schedule"),
    "Keys and webhooks": ("keys", "webhooks"),
    "Run the parts by themselves (operators)": (
        "serve", "worker", "sweep", "migrate", "first-key", "gc", "backup", "restore",
    ),
}  # fmt: skip
OTHERS = "Others"
LONG = 1000  # characters: the help is cut at the end of its first sentence, and by no width


class Sections(TyperGroup):
    """The commands of `wbar`, listed in sections."""

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Write the commands, section by section; what no section names comes last."""
        left = dict.fromkeys(self.list_commands(ctx))
        for title, names in (*SECTIONS.items(), (OTHERS, tuple(left))):
            rows = []
            for name in names:
                command = self.get_command(ctx, name)
                if name in left and command is not None and not command.hidden:
                    rows.append((name, command.get_short_help_str(LONG)))
                left.pop(name, None)
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=12)
