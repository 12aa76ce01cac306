"""guardkit as a service: `guard serve`, a judge and a guarding proxy in front of any LLM."""

from __future__ import annotations

from guardkit_serve.app import create_app
from guardkit_serve.settings import Key, Route, Settings, Upstream

__all__ = ["Key", "Route", "Settings", "Upstream", "create_app"]
