"""Write completion for shells: ``packaging/completions OUTDIR``.

``vedette`` completes live words, so its scripts ask the program; they are what ``vedette completion SHELL`` prints.
The two daemons' programs have only words that their parsers know: theirs are written out here, ask nobody, and start no
Python at a TAB.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from programs import surface
from programs.surface import Flag, Verb
from vedette.controller.cli.local import completion_script


def main(arguments: Sequence[str]) -> int:
    """Write every script into a folder."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: packaging/completions OUTDIR", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    for name, text in _scripts():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return 0


def _scripts() -> list[tuple[str, str]]:
    scripts = [
        ("bash/vedette", completion_script("bash")),
        ("zsh/_vedette", completion_script("zsh")),
        ("fish/vedette.fish", completion_script("fish")),
    ]
    for program in (surface.agent(), surface.controller()):
        scripts += [
            (f"bash/{program.path}", bash_script(program)),
            (f"zsh/_{program.path}", zsh_script(program)),
            (f"fish/{program.path}.fish", fish_script(program)),
        ]
    return scripts


_BASH = """\
# Completion of {program} for bash, made from its parser.
{function}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} verb= offered= i
    # bash makes "--flag=value" three words.
    if [[ $word == = ]]; then
        word=
    elif [[ $previous == = ]]; then
        previous=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            {with_value}) ((i++)) ;;
            {verbs}) verb=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    COMPREPLY=()
    case $verb/$previous in
{values}
    esac
    case $verb/$word in
{words}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$word")
}}
complete -F {function} {program}
"""
_FILES = """compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen {action} -- "$word")
            return ;;"""


def bash_script(program: Verb) -> str:
    """Return the script of a program for bash 4 and newer."""
    flags = [flag for verb in (program, *program.verbs) for flag in verb.flags]
    return _BASH.format(
        program=program.path,
        function=f"_{program.path.replace('-', '_')}",
        with_value="|".join(dict.fromkeys(name for flag in flags if flag.value for name in flag.names)),
        verbs="|".join(_name(verb) for verb in program.verbs),
        values="\n".join(line for verb in (program, *program.verbs) for line in _bash_values(verb)),
        words="\n".join(line for verb in (*program.verbs, program) for line in _bash_words(verb)),
    )


def _name(verb: Verb) -> str:
    return verb.path.partition(" ")[2]


def _bash_values(verb: Verb) -> list[str]:
    """Return what may follow each flag of a verb that takes a value."""
    lines = []
    for flag in verb.flags:
        if flag.value:
            pattern = "|".join(f"{_name(verb)}/{name}" for name in flag.names)
            if flag.choices:
                action = f'mapfile -t COMPREPLY < <(compgen -W "{" ".join(flag.choices)}" -- "$word"); return ;;'
            elif flag.completes:
                action = _FILES.format(action="-f" if flag.completes == "file" else "-d")
            else:
                action = "return ;;"
            lines.append(f"        {pattern}) {action}")
    return lines


def _bash_words(verb: Verb) -> list[str]:
    """Return what may stand where no flag wants a value: flags, files for an argument, verbs."""
    name = _name(verb)
    flags = " ".join(text for flag in verb.flags for text in flag.names)
    only_flags = f'        {name}/-*) offered="{flags}" ;;'
    if any(argument.completes for argument in verb.arguments):
        return [only_flags, f"        {name}/*) {_FILES.format(action='-f')}"]
    if verb.verbs:
        return [only_flags, f'        {name}/*) offered="{" ".join(_name(child) for child in verb.verbs)}" ;;']
    return [f'        {name}/*) offered="{flags}" ;;']


_ZSH = """\
#compdef {program}
# Completion of {program} for zsh, made from its parser.
{function}() {{
    local curcontext=$curcontext state line
    typeset -A opt_args
    local -a verbs
    verbs=(
{verbs}
    )
    _arguments -C \\
{flags}
        '1: :->verb' '*:: :->rest' && return
    case $state in
        verb) _describe -t commands command verbs ;;
        rest)
            case $line[1] in
{cases}
            esac ;;
    esac
}}
if [[ $funcstack[1] == _{program} ]]; then
    {function} "$@"
else
    compdef {function} {program}
fi
"""


def zsh_script(program: Verb) -> str:
    """Return the script of a program for zsh; it works on the path of functions and when it is sourced."""
    cases = []
    for verb in program.verbs:
        specs = [*(_zsh_flag(flag) for flag in verb.flags), *(_zsh_argument(item) for item in verb.arguments)]
        cases.append(f"                {_name(verb)}) _arguments {' '.join(specs)} ;;")
    return _ZSH.format(
        program=program.path,
        function=f"_{program.path.replace('-', '_')}",
        verbs="\n".join(f"        {_quoted(f'{_name(verb)}:{verb.summary}')}" for verb in program.verbs),
        flags="\n".join(f"        {_zsh_flag(flag)} \\" for flag in program.flags),
        cases="\n".join(cases),
    )


def _zsh_flag(flag: Flag) -> str:
    text = _escaped(flag.text)
    value = f":{_escaped(flag.value)}:{_zsh_action(flag)}" if flag.value else ""
    if len(flag.names) > 1:
        others, either = f"({' '.join(flag.names)})", ",".join(flag.names)
        return f"{_quoted(others)}{{{either}}}{_quoted(f'[{text}]{value}')}"
    often = "*" if flag.is_repeatable else ""
    return _quoted(f"{often}{flag.names[0]}{'=' if value else ''}[{text}]{value}")


def _zsh_argument(argument: Flag) -> str:
    return _quoted(f":{_escaped(argument.value)}:{_zsh_action(argument)}")


def _zsh_action(flag: Flag) -> str:
    if flag.choices:
        return f"({' '.join(flag.choices)})"
    return {"file": "_files", "folder": "_files -/", "": " "}[flag.completes]


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "[]:\\" else c for c in text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_FISH = """\
# Completion of {program} for fish, made from its parser.
function {function} --description 'Print the verb that was typed; the value of a flag is none'
    set -l words (commandline -opc)
    set -e words[1]
    set -l is_value no
    for word in $words
        if test $is_value = yes
            set is_value no
            continue
        end
        switch $word
            case {with_value}
                set is_value yes
            case '-*'
            case '*'
                echo $word
                return
        end
    end
    echo none
end
complete -c {program} -f
{lines}
"""


def fish_script(program: Verb) -> str:
    """Return the script of a program for fish 3 and newer."""
    function = f"__{program.path.replace('-', '_')}_verb"
    flags = [flag for verb in (program, *program.verbs) for flag in verb.flags]
    head = f"complete -c {program.path} -n 'contains -- none ({function})'"
    lines = [f"{head} -a {_name(verb)} -d {_fish(verb.summary)}" for verb in program.verbs]
    lines += [f"{head} {_fish_flag(flag)}" for flag in program.flags]
    for verb in program.verbs:
        typed = f"complete -c {program.path} -n 'contains -- {_name(verb)} ({function})'"
        lines += [f"{typed} {_fish_flag(flag)}" for flag in verb.flags]
        if any(argument.completes for argument in verb.arguments):
            lines.append(f"{typed} -F")
    return _FISH.format(
        program=program.path,
        function=function,
        with_value=" ".join(dict.fromkeys(name for flag in flags if flag.value for name in flag.names)),
        lines="\n".join(lines),
    )


def _fish_flag(flag: Flag) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
    value = ""
    if flag.choices:
        value = f" -x -a {_fish(' '.join(flag.choices))}"
    elif flag.value:
        value = " -r -F" if flag.completes else " -x"
    return f"{names}{value} -d {_fish(flag.text)}"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
