"""`navit-model completion SHELL`: a script by which a shell completes this command's words."""

from navit_loader.commands.completion import add as add
