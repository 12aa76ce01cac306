"""`guard serve`: the guard as a service, in front of any LLM."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from guardkit_cli import loading, settings
from guardkit_cli.output import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardkit_serve.plan import Model, Plan

EPILOG = """\b
Examples:
  guard serve                                         # judges: /v1/moderations, /v1/check
  guard serve --upstream http://127.0.0.1:8000/v1     # a guarding proxy before vLLM, llama.cpp, ...
  guard serve --upstream https://api.openai.com/v1 --api-key-env OPENAI_API_KEY
  guard serve --config guard.yaml --workers 2

\b
Then give a client the address as its base URL:
  OpenAI(base_url="http://127.0.0.1:8642/v1")     Anthropic(base_url="http://127.0.0.1:8642")

\b
SIGTERM and Ctrl-C end it once the requests under way have ended; SIGHUP reads
the config file again. What the file may hold: docs/serve.md.

\b
Exit codes:
  0    ended by SIGTERM        2  wrong usage, or a config file or policy that is not valid
  3    a model that does not load, or an address that is taken
  130  interrupted (Ctrl-C)
"""


@click.command("serve", epilog=EPILOG, short_help="Serve the guard over HTTP, in front of any LLM.")
@click.option("--upstream", metavar="URL", help="The server that answers. Without one, this server only judges.")
@click.option("--host", help="Where to listen. Default: 127.0.0.1, so only this machine can connect.")
@click.option("--port", type=click.IntRange(0, 65535), help="Default: 8642; 0 takes any that is free.")
@click.option(
    "--on-violation",
    type=click.Choice(["end", "error", "replace"]),
    help="How an answer ends that is stopped: as the protocol ends a filtered one (the default), with an error, or "
    "with a message in its place.",
)
@click.option("--message", metavar="TEXT", help="The message of --on-violation replace.")
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="The environment variable with the upstream's key. Default: the client's own key is passed on.",
)
@click.option("--holdback", type=click.IntRange(min=0), help="Tokens kept back until judged. Default: 8.")
@click.option("--config", metavar="FILE", type=click.Path(dir_okay=False), help="A YAML file; options go before it.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes; Qwen3Guard's weights have one of their own for all. Default: 1.",
)
@click.option("--allow-host", metavar="NAME", multiple=True, help="A name this machine may be called by, too.")
@click.option("--access-log/--no-access-log", default=None, help="A line of JSON a request on stderr, without texts.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds to judge in. Default: 30.")
@click.option("--on-error", type=click.Choice(["block", "allow"]), help="What becomes of what cannot be judged.")
@click.option("--device", help="Where the model runs: cpu, cuda, cuda:1. Default: the model's own choice.")
@click.option("--policy", shell_complete=settings.complete_policy, help="strict, balanced, loose, or a YAML file.")
@click.option(
    "--model", shell_complete=settings.complete_model, help="A name of `guard models`, a folder, hub id or URL."
)
def command(
    upstream: str | None,
    host: str | None,
    port: int | None,
    on_violation: str | None,
    message: str | None,
    api_key_env: str | None,
    holdback: int | None,
    config: str | None,
    workers: int | None,
    allow_host: tuple[str, ...],
    access_log: bool | None,
    timeout: float | None,
    on_error: str | None,
    device: str | None,
    policy: str | None,
    model: str | None,
) -> int:
    """Judge texts over HTTP, and guard the way to and from any LLM.

    Speaks OpenAI's chat completions, completions, Responses and moderations, and Anthropic's messages, whole and
    streamed.
    """
    try:
        from guardkit_serve.plan import read_config, with_flags
        from guardkit_serve.running import is_open, serve, unset_keys
        from guardkit_serve.settings import Upstream
    except ImportError as error:
        from guardkit.errors import MissingExtra

        raise MissingExtra("guard serve", "serve") from error

    def plan() -> Plan:
        from guardkit_serve.plan import Model, Plan

        found = read_config(config) if config is not None else Plan(())
        source = model or (None if found.models else settings.setting("model").value)
        options = (("device", device),) if device is not None else ()
        own = policy or (None if config is not None else settings.setting("policy").value)
        models = (Model(source, source, options),) if source is not None else None
        return with_flags(
            found,
            models=models,
            policies=(_policy(own, models or found.models),) if own is not None else None,
            upstreams=(Upstream(upstream, key_env=api_key_env),) if upstream is not None else None,
            routes=() if upstream is not None else None,
            host=host,
            port=port,
            hosts=allow_host or None,
            on_violation=on_violation,
            message=message,
            holdback=holdback,
            judge_s=timeout,
            access_log=access_log,
            on_error=on_error,
            workers=workers,
        )

    if api_key_env is not None and upstream is None:
        raise click.UsageError("--api-key-env names the key of --upstream: give both (or 'key_env' in --config)")
    if upstream is not None and not upstream.startswith(("http://", "https://")):
        raise click.UsageError(f"--upstream must be an http(s) address, not '{upstream}'")
    found = plan()
    for name in unset_keys(found):
        raise click.UsageError(f"the environment variable {name} should hold an upstream's key, and is not set")
    if is_open(found):
        say(f"anybody who reaches {found.settings.host} may use this server: add 'keys' to its config file", "warning")
    ready = partial(print, file=sys.stderr, flush=True)
    return serve(found, loading.load_guard, plan, lambda address: ready(f"guardkit is ready on {address}"))


def _policy(source: str, models: Sequence[Model]) -> tuple[str, str]:
    """A policy by its own name; its rules may name what the models do."""
    from guardkit import Policy
    from guardkit_serve.plan import categories_in

    return Policy.load(source, categories=categories_in(models)).name, source
