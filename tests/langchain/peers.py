"""The same matrices for NeMo Guardrails and guardrails-ai: prints the tables in docs/langchain.md.

    python -m venv v && v/bin/pip install nemoguardrails langchain guardkit   # and another one for guardrails-ai
    v/bin/python -m tests.langchain.peers

Each is told to look for the flagged words, wherever it offers to look; what is not installed is left out. Only the
flagged words count as a leak. Beside an agent's matrix there is one of a bare chat model, where NeMo's RunnableRails
and guardrails-ai's Guard.to_runnable() stand.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.langchain.matrix import SIZE, alone, cell, leaks, table
from tests.langchain.scripted import ScriptedModel, reply, script_for
from tests.langchain.surfaces import CHAIN_SURFACES, WATCHED_SURFACES
from tests.leaks import FLAGGED, SAFE, make_guard, strings_in

STAGES = {"prompt": "prompt", "answer": "answer", "reasoning": "reasoning", "tool_call": "tool call"}
CONFIG = """
rails:
  input: {flows: [check what is asked]}
  output: {flows: [check what is said], streaming: {enabled: true%s}}
"""
FLOWS = """
define bot refuse
  "I cannot help with that."

define subflow check what is asked
  $found = execute look_for_it(text=$user_message)
  if $found.is_blocked
    bot refuse
    stop

define subflow check what is said
  $found = execute look_for_it(text=$bot_message)
  if $found.is_blocked
    bot refuse
    stop
"""
ACTIONS = f"""
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

@action(is_system_action=True)
async def look_for_it(text="", **kwargs):
    return RailOutcome.block(reason="flagged") if {FLAGGED!r} in (text or "") else RailOutcome.allow()
"""


@contextmanager
def nemo_folder(more: str = "") -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("config.yml", CONFIG % more), ("rails.co", FLOWS), ("actions.py", ACTIONS)):
            (Path(folder) / name).write_text(text)
        yield folder


def nemo_middleware() -> Any:
    from nemoguardrails.integrations.langchain.middleware import GuardrailsMiddleware

    with nemo_folder() as folder:
        return GuardrailsMiddleware(config_path=folder)


def nemo_rails(more: str = "") -> Callable[[Any], Any]:
    def wrap(model: Any) -> Any:
        from nemoguardrails import RailsConfig
        from nemoguardrails.integrations.langchain.runnable_rails import RunnableRails

        with nemo_folder(more) as folder:
            return RunnableRails(RailsConfig.from_path(folder), llm=model)

    return wrap


def guardrails_ai(model: Any) -> Any:
    from guardrails import Guard
    from guardrails.validators import FailResult, PassResult, Validator, register_validator

    @register_validator(name="flagged-words", data_type="string")
    class FlaggedWords(Validator):
        def validate(self, value: Any, metadata: Any) -> Any:
            return FailResult(error_message="flagged") if FLAGGED in value else PassResult()

    return model | Guard().use(FlaggedWords(on_fail="exception")).to_runnable()


def guardkit_model(model: Any) -> Any:
    from langchain_guardkit import GuardedChatModel

    return GuardedChatModel(model, make_guard(), exit_behavior="end")


def run(wrap: Callable[[Any], Any], surface: str, stage: str) -> bool:
    """Whether flagged words were seen on the surface; of a bad prompt, whether the model was asked it."""
    prompt, replies, _ = script_for(stage)
    model = ScriptedModel(replies=replies, size=SIZE)
    seen: list[Any] = []
    try:
        for item in {**CHAIN_SURFACES, **WATCHED_SURFACES}[surface](wrap(model), prompt, {}):
            seen.append(item)
    except Exception as error:
        # what is said of a text in an error is not the text: such as guardrails-ai's, which quotes it
        seen.append(str(error))
    return leaks(model.asked) if stage == "prompt" else leaks(seen)


def shows(wrap: Callable[[Any], Any], surface: str) -> bool:
    """Whether a harmless answer is to be seen there at all."""
    model = ScriptedModel(replies=[reply(SAFE)], size=len(SAFE))
    try:
        seen = list({**CHAIN_SURFACES, **WATCHED_SURFACES}[surface](wrap(model), "hello", {}))
    except Exception:
        return False
    return any(SAFE[-20:] in text for text in strings_in(seen))


def chains(contenders: dict[str, Callable[[Any], Any]]) -> str:
    rows = [f"| surface | {' | '.join(contenders)} |", f"|---|{'---|' * len(contenders)}"]
    for surface in [*CHAIN_SURFACES, *WATCHED_SURFACES]:
        cells = []
        for wrap in contenders.values():
            found = [name for stage, name in STAGES.items() if alone(run, wrap, surface, stage)]
            cells.append(cell(found, len(STAGES)) if alone(shows, wrap, surface) else "shows nothing")
        rows.append(f"| {surface} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    agents: dict[str, Callable[[], Any]] = {}
    models: dict[str, Callable[[Any], Any]] = {}
    if importlib.util.find_spec("nemoguardrails"):
        print("nemoguardrails", importlib.metadata.version("nemoguardrails"))
        agents["NeMo GuardrailsMiddleware"] = nemo_middleware
        models["NeMo RunnableRails"] = nemo_rails()
        models["NeMo RunnableRails, stream_first: false"] = nemo_rails(", stream_first: false")
    if importlib.util.find_spec("guardrails"):
        print("guardrails-ai", importlib.metadata.version("guardrails-ai"))
        models["guardrails-ai to_runnable"] = guardrails_ai
    models["GuardedChatModel"] = guardkit_model
    print(f"\n{chains(models)}", flush=True)
    if agents:
        print(f"\n{table(agents)}")


if __name__ == "__main__":
    main()
