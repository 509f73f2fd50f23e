"""The command `vlaprune`: its subcommands, their help, the lists of options, and packages written by `vlaprune new`."""
