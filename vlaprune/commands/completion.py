"""`vlaprune completion`: the script that a shell sources to complete commands and settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

BASH = r"""# vlaprune: in ~/.bashrc, eval "$(vlaprune completion bash)"
_vlaprune() {
    local line="${COMP_LINE:0:COMP_POINT}" word="${COMP_LINE:0:COMP_POINT}" command choices
    word="${word##* }"
    read -r _ command _ <<<"$line"
    if [[ ! "$line" =~ ^[^\ ]+\ +[^\ ]+\  ]]; then
        choices="eval profile train serve report doctor watch demo tune list export import new completion"
        choices+=" --help --version"
    else
        case "$command" in
        eval|profile|train|serve)
            local rest="${line#* $command}"
            choices="$(COMP_LINE="vlaprune-$command$rest" COMP_POINT=$((${#rest} + 9 + ${#command})) \
                "vlaprune-$command" -sc query=bash 2>/dev/null)" ;;
        doctor)
            local rest="${line#* $command}"
            choices="$(COMP_LINE="vlaprune-eval$rest" COMP_POINT=$((${#rest} + 13)) \
                vlaprune-eval -sc query=bash 2>/dev/null)" ;;
        list) choices="models methods benches robots experiments devices --names" ;;
        new) choices="method model bench" ;;
        completion) choices="bash zsh" ;;
        *) choices="" ;;
        esac
    fi
    COMP_WORDBREAKS="${COMP_WORDBREAKS//=}"
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
    [ ${#COMPREPLY[@]} = 0 ] && COMPREPLY=($(compgen -f -- "$word"))
    [[ ${#COMPREPLY[@]} = 1 && "${COMPREPLY[0]}" != *= && "${COMPREPLY[0]}" != *. ]] && COMPREPLY[0]="${COMPREPLY[0]} "
    return 0
}
complete -o nospace -F _vlaprune vlaprune
"""
ZSH = '# vlaprune: in ~/.zshrc, eval "$(vlaprune completion zsh)"\nautoload -U bashcompinit && bashcompinit\n' + BASH


def main(argv: Sequence[str]) -> int:
    """Prints the script of one shell."""
    parser = argparse.ArgumentParser(
        prog="vlaprune completion", description='Prints a completion script: eval "$(vlaprune completion bash)"'
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    print({"bash": BASH, "zsh": ZSH}[parser.parse_args(argv).shell], end="")
    return 0
