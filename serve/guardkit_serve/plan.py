"""What a server is to run: models, policies and settings, from flags, or from a config file with the line of each
mistake."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from guardkit import Category, Guard, Policy, PolicyError
from guardkit.models import DEFAULT_MODEL, categories_of
from guardkit.policy_file import Lines, read
from guardkit.rollback.server import CONTINUE
from guardkit_serve.settings import ON_VIOLATION, Key, RollbackSettings, Route, Settings, Upstream


class ConfigError(PolicyError):
    """A config file that is not valid. Names the file and the line."""


@dataclass(frozen=True)
class Model:
    """A model by the name that requests give it. source: what `Guard.load` takes; options: beside it."""

    name: str
    source: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def has_weights(self) -> bool:
        """Whether it is one of Qwen3Guard's kind, of which a machine or a GPU has room for one copy: neither the
        embedded one nor at a server."""
        sources = filter(None, (self.source, dict(self.options).get("then")))
        return any(source != DEFAULT_MODEL and "://" not in source for source in sources)

    @property
    def is_shared(self) -> bool:
        """Whether it lives in a process of its own."""
        return bool(dict(self.options).get("process"))

    def shared(self, folder: Path) -> Model:
        """The same for several workers: with one process for all, found in `folder`, where it has weights and nothing
        else is said, or is to have a process of its own."""
        if not dict(self.options).get("process", self.has_weights):
            return self
        return replace(self, options=tuple(sorted({**dict(self.options), "process": str(folder)}.items())))


@dataclass(frozen=True)
class Plan:
    """The first model and the first policy are the defaults. policies: by name, a built-in's name or a file."""

    models: tuple[Model, ...]
    policies: tuple[tuple[str, str], ...] = (("balanced", "balanced"),)
    settings: Settings = field(default_factory=Settings)
    on_error: str | None = None
    audit: str | None = None
    workers: int = 1

    def shared(self, folder: Path) -> Plan:
        """For several workers."""
        return replace(self, models=tuple(model.shared(folder) for model in self.models))

    def load_policies(self) -> dict[str, Policy]:
        found = {}
        for name, source in self.policies:
            policy = Policy.load(source, categories=categories_in(self.models))
            found[name] = policy if policy.name == name else _named(policy, name)
        return found

    def load_guards(
        self, load: Callable[..., Guard], loaded: Mapping[Model, Guard] | None = None
    ) -> dict[Model, Guard]:
        """A guard for each model, under the first policy; those of `loaded` are taken as they are."""
        policy = self.policies[0][1]
        out = {}
        for model in self.models:
            if loaded is not None and model in loaded:
                out[model] = loaded[model]
            else:
                more = {"on_error": self.on_error, "timeout": self.settings.judge_s, "audit": self.audit}
                more = {name: value for name, value in more.items() if value is not None}
                out[model] = load(model.source, policy=policy, **more, **dict(model.options))
        return out


def categories_in(models: Sequence[Model]) -> tuple[Category, ...]:
    """All that some of the models name; none of them is loaded for it."""
    found: list[Category] = []
    for model in models:
        options = dict(model.options)
        if options.get("categories"):
            found += [Category.named(label) for label in options["categories"]]
            continue
        for source in filter(None, (model.source, options.get("then"))):
            found += categories_of(str(source), options.get("revision"))
    return tuple(dict.fromkeys(found))


def _named(policy: Policy, name: str) -> Policy:
    return Policy(
        name,
        extends=policy.extends,
        on_error=policy.on_error,
        on_unmeasured=policy.on_unmeasured,
        rules=policy.own_rules,
    )


# ------------------------------------------------------------------------------------------------- the config file

_SIMPLE: dict[str, type | tuple[type, ...]] = {
    "host": str, "port": int, "on_violation": str, "message": str, "holdback": int, "judge_s": (int, float),
    "body_s": (int, float), "write_s": (int, float), "max_request_bytes": int, "max_answer_bytes": int,
    "max_event_bytes": int, "max_requests": int, "grace_s": (int, float), "access_log": bool, "page_texts": bool,
    "on_error": str, "audit": str, "workers": int,
}  # fmt: skip
_KEYS = (*_SIMPLE, "hosts", "models", "policies", "upstreams", "routes", "keys")
_OPTIONS: dict[str, type | tuple[type, ...]] = {
    "model": str, "device": str, "dtype": str, "revision": str, "threads": int, "cache_gib": (int, float),
    "max_streams": int, "quantize": str, "then": str, "threshold": (int, float), "debounce": int,
    "process": bool,
}  # fmt: skip
_ROLLBACK: dict[str, type | tuple[type, ...]] = {
    "buffer": int, "retries": int, "introspect": bool, "stride": int, "continue_by": str,
}  # fmt: skip
_NEVER_CONTINUE = (".openai.com", ".anthropic.com")
_KINDS: dict[Any, str] = {str: "a string", int: "a whole number", bool: "true or false", (int, float): "a number"}


def read_config(path: str | Path) -> Plan:
    """Raises `ConfigError` (or the policy's own `PolicyError`) that names the line."""
    file = Path(path).expanduser()
    try:
        data, lines = read(file)
    except PolicyError as error:
        message = str(error).replace(
            "a policy file holds a mapping (name, extends, on_error, rules)", "a mapping is expected"
        )
        raise ConfigError(message) from None
    return _Reader(file, lines).plan(data)


class _Reader:
    def __init__(self, file: Path, lines: Lines):
        self._file, self._lines = file, lines

    def fail(self, message: str, *path: str | int) -> ConfigError:
        while path and path not in self._lines:
            path = path[:-1]
        return ConfigError(message, source=str(self._file), line=self._lines.get(path, 1))

    def plan(self, data: Mapping[str, Any]) -> Plan:
        self._known(data, _KEYS)
        simple = {key: self._typed(data[key], kind, key) for key, kind in _SIMPLE.items() if data.get(key) is not None}
        if simple.get("on_violation", "end") not in ON_VIOLATION:
            raise self.fail(f"'on_violation' must be one of {', '.join(ON_VIOLATION)}", "on_violation")
        if simple.get("on_error", "block") not in ("block", "allow"):
            raise self.fail("'on_error' must be 'block' or 'allow'", "on_error")
        for key, value in simple.items():
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and value < (0 if key == "holdback" else 1)
            ):
                raise self.fail(f"'{key}' is too small: {value}", key)
        beside = {key: simple.pop(key) for key in ("on_error", "audit", "workers") if key in simple}
        models = self._models(data)
        policies = self._policies(data, categories_in(models))
        upstreams = tuple(self._objects(data, "upstreams", Upstream))
        keys = tuple(self._objects(data, "keys", Key))
        routes = tuple(self._objects(data, "routes", Route))
        hosts = data.get("hosts") or ()
        if isinstance(hosts, str) or not all(isinstance(host, str) for host in hosts):
            raise self.fail("'hosts' must be a list of names", "hosts")
        self._references(upstreams, routes, keys, dict(policies), [model.name for model in models])
        settings = Settings(upstreams=upstreams, routes=routes, keys=keys, hosts=tuple(hosts), **simple)
        return Plan(models, policies, settings, **beside)

    def _models(self, data: Mapping[str, Any]) -> tuple[Model, ...]:
        out = []
        for name, given in self._mapping(data, "models").items():
            options = {"model": given} if isinstance(given, str) else given or {}
            if not isinstance(options, Mapping):
                raise self.fail(f"model '{name}': a name, folder or address, or options", "models", name)
            self._known(options, (*_OPTIONS, "served", "categories"), "models", name)
            rest = {k: self._typed(options[k], kind, "models", name, k) for k, kind in _OPTIONS.items() if k in options}
            source = rest.pop("model", name)
            if "served" in options:  # the name of the model at a server
                rest["model"] = self._typed(options["served"], str, "models", name, "served")
            if "categories" in options:  # what that model was trained on; a server does not tell
                rest["categories"] = self._categories(options["categories"], "models", name, "categories")
            out.append(Model(name, str(source), tuple(sorted(rest.items()))))
        return tuple(out)

    def _categories(self, value: Any, *path: str | int) -> tuple[str, ...]:
        try:
            if isinstance(value, list) and value:
                return tuple(Category.named(label).label for label in value)
        except (ValueError, TypeError, AttributeError):
            pass
        raise self.fail(f"'{path[-1]}' must be a list of labels, not {value!r}", *path)

    def _policies(self, data: Mapping[str, Any], categories: Sequence[Category]) -> tuple[tuple[str, str], ...]:
        out = []
        for name, source in self._mapping(data, "policies").items():
            source = self._typed(source, str, "policies", name)
            beside = self._file.parent / source
            source = str(beside) if beside.is_file() else source
            try:
                Policy.load(source, categories=categories)
            except PolicyError as error:
                if error.line is not None:
                    raise
                raise self.fail(f"policy '{name}': {error}", "policies", name) from None
            out.append((name, source))
        return tuple(out) or (("balanced", "balanced"),)

    def _objects(self, data: Mapping[str, Any], section: str, kind: Any) -> list[Any]:
        """A list of objects, or a mapping from their names."""
        given = data.get(section) or []
        listed: list[tuple[str | int, Any]]
        if isinstance(given, Mapping) and section == "upstreams":
            listed = [(n, {"name": n, **(v if isinstance(v, Mapping) else {"url": v})}) for n, v in given.items()]
        elif isinstance(given, list):
            listed = list(enumerate(given))
        else:
            raise self.fail(f"'{section}' must be a list", section)
        out, names = [], set()
        for at, value in listed:
            if not isinstance(value, Mapping):
                raise self.fail(f"an entry of '{section}' is a mapping", section, at)
            self._known(value, tuple(f.name for f in fields(kind)), section, at)
            taken = {}
            for f in fields(kind):
                if value.get(f.name) is None:
                    if f.default is MISSING:
                        raise self.fail(f"an entry of '{section}' needs '{f.name}'", section, at)
                    continue
                taken[f.name] = self._field(value[f.name], str(f.type), section, at, f.name)
            out.append(kind(**taken))
            if "name" in taken and taken["name"] in names:
                raise self.fail(f"'{taken['name']}' stands twice in '{section}'", section, at)
            names.add(taken.get("name"))
        return out

    def _field(self, value: Any, kind: str, *path: str | int) -> Any:
        if kind.startswith("Rollback"):
            return self._rollback(value, *path)
        if kind.startswith("tuple"):
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise self.fail(f"'{path[-1]}' must be a list of names", *path)
            return tuple(value)
        wanted: Any = str if kind.startswith("str") else int if kind == "int" else (int, float)
        value = self._typed(value, wanted, *path)
        if isinstance(value, int | float) and value < 0:
            raise self.fail(f"'{path[-1]}' must not be below 0", *path)
        return value

    def _rollback(self, value: Any, *path: str | int) -> RollbackSettings | Literal[False]:
        """Settings of it; true: those of the library; false: without it."""
        if isinstance(value, bool):
            return RollbackSettings() if value else False
        if not isinstance(value, Mapping):
            raise self.fail("'rollback' is a mapping, or true", *path)
        self._known(value, tuple(_ROLLBACK), *path)
        taken = {key: self._typed(value[key], kind, *path, key) for key, kind in _ROLLBACK.items() if key in value}
        for key, least in (("buffer", 1), ("stride", 1), ("retries", 0)):
            if key in taken and taken[key] < least:
                raise self.fail(f"'{key}' must be at least {least}", *path, key)
        if (by := taken.get("continue_by")) is not None and by not in CONTINUE:
            raise self.fail(f"'continue_by' is one of {', '.join(CONTINUE)}, not '{by}'", *path, "continue_by")
        return RollbackSettings(**taken)

    def _references(
        self, upstreams: Any, routes: Any, keys: Any, policies: Mapping[str, str], models: list[str]
    ) -> None:
        """What is named must be there."""
        known = [upstream.name for upstream in upstreams]
        for i, upstream in enumerate(upstreams):
            if not re.match(r"https?://[^/]", upstream.url):
                raise self.fail(f"'{upstream.url}' is no http(s) address", "upstreams", upstream.name, i, "url")
            if upstream.rollback and (urlsplit(upstream.url).hostname or "").endswith(_NEVER_CONTINUE):
                why = f"'{upstream.url}' continues no assistant message, so nothing can be taken back there"
                raise self.fail(why, "upstreams", upstream.name, i, "rollback")
        for i, route in enumerate(routes):
            if route.upstream not in known:
                raise self.fail(
                    f"no upstream '{route.upstream}'; there is: {', '.join(known)}", "routes", i, "upstream"
                )
        for i, key in enumerate(keys):
            if not re.fullmatch("[0-9a-fA-F]{64}", key.sha256):
                raise self.fail("'sha256' must be the SHA-256 of a key, in 64 hex digits", "keys", i, "sha256")
            for name in (key.policy, *key.policies):
                if name is not None and name not in policies:
                    raise self.fail(f"no policy '{name}'; there is: {', '.join(policies)}", "keys", i)
            if key.model is not None and models and key.model not in models:
                raise self.fail(f"no model '{key.model}'; there is: {', '.join(models)}", "keys", i, "model")

    def _mapping(self, data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = data.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.fail(f"'{key}' maps names", key)
        return value

    def _known(self, data: Mapping[str, Any], known: tuple[str, ...], *path: str | int) -> None:
        for key in data:
            if key not in known:
                raise self.fail(f"unknown key '{key}'; known: {', '.join(known)}", *path, key)

    def _typed(self, value: Any, kind: Any, *path: str | int) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fail(f"'{path[-1]}' must be {_KINDS[kind]}, not {value!r}", *path)
        return value


def with_flags(plan: Plan, **flags: Any) -> Plan:
    """The plan with what was given on the command line in place of its own. None: not given."""
    given = {name: value for name, value in flags.items() if value is not None}
    own = {name: given.pop(name) for name in ("models", "policies", "on_error", "audit", "workers") if name in given}
    return replace(plan, settings=replace(plan.settings, **given), **own)
