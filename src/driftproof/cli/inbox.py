"""`driftproof inbox`: rollouts from any process, over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path

from driftproof.cli.commands import Commands, command
from driftproof.errors import ConfigError


def add(commands: Commands) -> None:
    inbox = command(commands, "inbox", _inbox, "let any process write rollouts, over HTTP")
    inbox.add_argument("run", type=Path)
    inbox.add_argument("--host", default="127.0.0.1")
    inbox.add_argument("--port", type=int, default=0, help="0: any free one")
    inbox.add_argument("--token-env", default="", metavar="NAME", help="environment variable that holds the token")
    inbox.add_argument("--max-megabytes", type=int, default=64, help="largest request")


def _inbox(known: argparse.Namespace, _: list[str]) -> int:
    try:
        from driftproof.inbox.serve import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise ConfigError("the inbox needs its packages: pip install 'driftproof[inbox]'") from error
    from driftproof.runtime.inbox import open_inbox
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
    return 0
