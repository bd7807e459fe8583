"""`driftproof train`, and what is done with its run: `groups`, `report`, `inbox`, `ledger check`, `repair`, `prune`."""

import errno
import json
import sys
from argparse import Namespace
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from driftproof.cli.commands import Commands, command, located, print_lines, whole_number
from driftproof.config import Config, load_config
from driftproof.errors import ConfigError, RunError, command_line
from driftproof.ledger.records import Plan
from driftproof.run import LATEST, RunDirectory
from driftproof.text import printable_lines


def add(commands: Commands) -> None:
    train = command(commands, "train", _train, "post-train a model as a recipe says", settings=True)
    train.add_argument("recipe", type=Path, nargs="?", help="a TOML recipe; settings on top: --section.key value")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this directory")
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, print the resolved configuration, stop"
    )
    groups = command(commands, "groups", _groups, "look at the rollouts of a run")
    groups.add_argument("run", type=Path)
    groups.add_argument("--by", choices=("best", "worst", "age", "prompt"), default="best")
    groups.add_argument("--limit", type=whole_number(1), default=10, help="groups to show")
    report = command(commands, "report", _report, "draw a run's picture and print its summary")
    report.add_argument("run", type=Path)
    inbox = command(commands, "inbox", _inbox, "let any process write rollouts, over HTTP")
    inbox.add_argument("run", type=Path)
    inbox.add_argument("--host", default="127.0.0.1")
    inbox.add_argument("--port", type=whole_number(0, 65535), default=0, help="0: any free one")
    inbox.add_argument("--token-env", default="", metavar="NAME", help="environment variable that holds the token")
    inbox.add_argument("--max-megabytes", type=whole_number(1, 1024), default=64, help="largest request")
    ledger = commands.add_parser("ledger", help="verify, repair or prune a run's ledger", allow_abbrev=False)
    actions = ledger.add_subparsers(required=True, metavar="ACTION")
    checking = command(actions, "check", _check_ledger, "whether a run is what it says it is")
    checking.add_argument("run", type=Path)
    checking.add_argument("--json", action="store_true", help="print the findings as JSON")
    repair = command(actions, "repair", _repair_ledger, "save what can be saved of a damaged ledger")
    repair.add_argument("run", type=Path)
    repair.add_argument("--output", type=Path, metavar="FILE", help="a new ledger; the run's own is left in place")
    prune = command(actions, "prune", _prune_ledger, "forget what old groups hold, and free its space")
    prune.add_argument("run", type=Path)
    prune.add_argument(
        "--keep-steps", type=whole_number(0), required=True, metavar="N", help="keep groups of the last N steps"
    )


def _train(known: Namespace) -> None:
    from driftproof.report.display import RunConsole, open_display

    recipe, run, settings = known.recipe, known.resume, known.settings
    if (recipe is None) == (run is None):
        raise ConfigError("give a recipe to start a run, or --resume RUN to go on with one")
    config = located(load_config(recipe, settings) if recipe else Config.written_in(run, settings))
    if known.dry_run:
        _dry_run(config)
        return
    console = RunConsole()
    with closing(open_display(console)) as display:
        # Torch and transformers are seconds of imports, in which something must be seen already.
        display.starting(run or config.run.name, "imports its libraries")
        from driftproof.runtime.resources import quiet_libraries
        from driftproof.runtime.train import resume, start

        quiet_libraries()
        directory = resume(run, config, display) if run else start(config, display)
    _show_result(console, directory)


def _dry_run(config: Config) -> None:
    from driftproof.runtime.preflight import preflight
    from driftproof.runtime.resources import quiet_libraries, resolve

    def say(text: str) -> None:
        # What would run goes to standard output, as TOML alone.
        print(text, file=sys.stderr)

    quiet_libraries()
    preflight(config, lambda text: say(f"warning: {text}"), say)
    print(resolve(config).to_toml(), end="")


def _groups(known: Namespace) -> None:
    from driftproof.ledger.reader import LedgerReader
    from driftproof.report.tables import groups_table
    from driftproof.tasks.codec import Codec

    config = Config.written_in(known.run)
    # The run's own, where it has one: the base model may be elsewhere by now.
    snapshot = RunDirectory(path=known.run).snapshots / LATEST
    codec = Codec(snapshot if snapshot.is_dir() else config.model.path)
    with LedgerReader(RunDirectory(path=known.run).ledger) as ledger:
        Console().print(groups_table(ledger, codec.decode, by=known.by, limit=known.limit))


def _report(known: Namespace) -> None:
    Config.written_in(known.run)
    _show_result(Console(), RunDirectory(path=known.run))


def _show_result(console: Console, directory: RunDirectory) -> None:
    """Draw a run's picture, write its summary and print it."""
    from driftproof.ledger.reader import LedgerReader
    from driftproof.report.picture import draw
    from driftproof.report.summary import summarize, write_summary
    from driftproof.report.tables import before_after_table, events_table

    model, picture = directory.snapshots / LATEST, str(directory.picture)
    with LedgerReader(directory.ledger) as ledger:
        summary = summarize(ledger, model)
        try:
            write_summary(directory.summary, summary)
            draw(ledger, directory.picture)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise RunError(
                    f"summary and picture of {directory.path} cannot be written: {error.strerror}; nothing of the run "
                    f"is lost: make space, and: {command_line('driftproof', 'report', directory.path)}"
                ) from error
            picture = f"none: {error.strerror}"
        console.print(before_after_table(summary))
        if events := ledger.events():
            console.print(events_table(events))
    print_lines(
        console,
        f"groups   {summary.groups_committed} committed, {summary.groups_trained} trained; "
        f"{summary.groups_of_equal_reward} of {summary.groups_trained} groups had equal rewards",
        f"picture  {picture}",
        f"model    {model.resolve()}",
        f"next     {command_line('driftproof', 'groups', directory.path)}",
    )


def _inbox(known: Namespace) -> None:
    try:
        from driftproof.inbox.serve import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise ConfigError("the inbox needs its packages: pip install 'driftproof[inbox]'") from error
    from driftproof.runtime.build import open_inbox
    from driftproof.runtime.resources import quiet_libraries

    quiet_libraries()
    serve(
        open_inbox(known.run),
        known.run,
        host=known.host,
        port=known.port,
        token_environment=known.token_env,
        max_megabytes=known.max_megabytes,
        say=lambda line: print(line, flush=True),
    )


def _check_ledger(known: Namespace) -> int:
    from driftproof.ledger.maintenance.check import check_run

    found = check_run(known.run)
    nothing = f"{found.groups:,} groups, {found.steps:,} steps: nothing is wrong"
    lines = printable_lines("\n".join(found.findings)) or nothing
    print(json.dumps(asdict(found), indent=2) if known.json else lines)
    return 1 if found.findings else 0


def _repair_ledger(known: Namespace) -> None:
    from driftproof.ledger.maintenance.repair import repair_run

    def plan_anew() -> Plan:
        from driftproof.runtime.preflight import preflight

        return preflight(Config.written_in(known.run))

    done = repair_run(known.run, known.output, plan_anew)
    nothing = [f"nothing is wrong with the ledger of {known.run}; it is left alone"]
    print("\n".join(nothing if done is None else done.lines()))


def _prune_ledger(known: Namespace) -> None:
    from driftproof.ledger.maintenance.prune import prune_run

    print(prune_run(known.run, known.keep_steps))
