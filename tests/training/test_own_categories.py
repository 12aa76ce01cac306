"""Categories of one's own, from the checkpoint to policies, reports, the command and the server."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Category, Guard, Policy, PolicyError, Severity, Verdict
from guardkit.models import categories_of
from guardkit.testing import FakeGuard
from guardkit_cli import run as run_command
from tests.training.conftest import Made, run

GAMBLING = Category.named("Gambling & Betting")
POLICY = """\
name: mine
rules:
  - category: [gambling_betting]
    action: redact
  - category: {second}
    action: allow
"""


@pytest.fixture(scope="session")
def own(root: Path) -> Made:
    """A Stream of three categories, two of them its own, barely trained."""
    file = root / "own.yaml"
    file.write_text("- violent\n- name: Gambling & Betting\n- pii\n- name: Tricks\n  prompts_only: true\n")
    return run("stream", root, "own", categories=file, backbone="frozen", steps=1, batch=8)


# -- the type


def test_a_name_is_one_of_the_nine_or_a_models_own() -> None:
    for category in Category:
        assert Category.named(category.value) is Category.named(category.label.upper()) is category
        assert not category.is_own
    assert (GAMBLING.value, GAMBLING.name, GAMBLING.label) == (
        "gambling_betting",
        "gambling_betting",
        "Gambling & Betting",
    )
    assert GAMBLING.is_own
    assert GAMBLING == Category.named("gambling_betting") != Category.violent
    assert len({GAMBLING, Category.named("gambling betting")}) == 1
    assert list(Category) == [Category(c.value) for c in Category]
    with pytest.raises(ValueError, match="not a valid"):
        Category("gambling_betting")
    for twin in (pickle.loads(pickle.dumps(GAMBLING)), copy.deepcopy(GAMBLING), copy.copy(GAMBLING)):
        assert twin == GAMBLING
        assert twin.label == GAMBLING.label
    assert pickle.loads(pickle.dumps(Category.pii)) is Category.pii
    assert Verdict(Severity.unsafe, (GAMBLING,)).to_dict()["categories"] == ["gambling_betting"]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_any_name_makes_a_category_that_its_value_names_again(name: str) -> None:
    try:
        found = Category.named(name)
    except ValueError:
        return
    assert Category.named(found.value) == found == Category.named(found.label) == pickle.loads(pickle.dumps(found))
    assert isinstance(found, Category)
    assert "," not in found.label
    assert "\n" not in found.label


# -- policies


def test_a_policy_names_the_models_categories(own: Made, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.format(second="tricks"))
    guard = Guard(own.guard.model, policy=file)
    unsafe = Verdict(Severity.unsafe, (GAMBLING,))
    assert guard.policy.decide(unsafe).action.value == "redact"
    assert guard.policy.decide(Verdict(Severity.unsafe, (Category.named("tricks"),))).action.value == "allow"
    written = tmp_path / "written.yaml"
    written.write_text(guard.policy.to_yaml())
    assert Policy.load(written, categories=guard.categories).to_dict() == guard.policy.to_dict()
    assert Guard(own.guard.model, policy=guard.policy, on_error="allow").policy.own_rules == guard.policy.own_rules
    with pytest.raises(PolicyError, match=r"policy\.yaml:3: unknown category 'gambling_betting'; known: violent"):
        Policy.load(file)


@pytest.mark.parametrize("name", ["sexual", "gamblng_betting"])
def test_a_policy_for_another_model_names_the_line(own: Made, tmp_path: Path, name: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.format(second=name))
    with pytest.raises(PolicyError) as caught:
        Guard(own.guard.model, policy=file)
    assert f"{file}:5: unknown category '{name}'; known: violent, gambling_betting, pii, tricks" in str(caught.value)
    assert ("did you mean 'gambling_betting'" in str(caught.value)) is (name != "sexual")
    other = Policy("other", rules=[{"category": "sexual", "action": "flag"}])
    with pytest.raises(
        PolicyError, match="unknown category in rule 1 of other, 'sexual'; known: violent, gambling_betting"
    ):
        Guard(own.guard.model, policy=other)
    assert Guard(FakeGuard().model, policy=other).policy is other


# -- verdicts and reports


def test_the_engine_reads_the_checkpoints_maps(own: Made) -> None:
    model = own.guard.model
    assert [c.value for c in model.query_categories] == ["violent", "gambling_betting", "pii", "tricks"]
    assert [c.label for c in model.response_categories] == ["Violent", "Gambling & Betting", "PII"]
    assert categories_of(own.folder) == own.guard.categories == model.query_categories
    assert categories_of("nano") == tuple(Category)
    told = {c for text in ("river", "tea", "sword", "garden") for c in watch(own, text).categories}
    assert told <= set(model.query_categories)


def watch(made: Made, text: str) -> Verdict:
    return Guard(made.guard.model.with_threshold(0.01)).check(text)


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `guard`: exit status, standard output, standard error."""

    def call(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(list(args))
        return code, *capsys.readouterr()

    return call


def test_the_command_shows_them(own: Made, tmp_path: Path, command: Command) -> None:
    model, file = ["--model", str(own.folder), "--device", "cpu"], tmp_path / "policy.yaml"
    file.write_text(POLICY.format(second="tricks"))
    assert command("policy", "validate", str(file), "--model", str(own.folder))[0] == 0
    code, _, talk = command("policy", "validate", str(file), "--model", "nano")
    assert (code, "policy.yaml:3: unknown category 'gambling_betting'" in talk) == (2, True)
    assert "gambling_betting" in command("policy", "show", str(file), "--model", str(own.folder))[1]
    explain = ("policy", "explain", "--policy", str(file), "--model", str(own.folder), "--severity", "unsafe")
    assert "action: redact" in command(*explain, "--category", "gambling_betting")[1]
    code, _, talk = command(*explain, "--category", "sexual")
    assert (code, "violent, gambling_betting, pii, tricks" in talk) == (2, True)
    _, out, _ = command("check", *model, "--threshold", "0.01", "--json", "the river", "the sword")
    names = {c for line in out.splitlines() for c in json.loads(line)["categories"]}
    assert names
    assert names <= {c.value for c in own.guard.categories}
    _, out, _ = command("check", *model, "--threshold", "0.01", "--summary", "the river", "the sword")
    assert any(name in out for name in names)


def test_eval_scores_them(own: Made, tmp_path: Path, command: Command) -> None:
    rows = [
        {"prompt": f"the river {i}", "severity": "unsafe", "categories": [name]}
        for i in range(6)
        for name in ("Gambling & Betting", "tricks", "violent", "no such thing")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ("eval", str(tmp_path / "rows.jsonl"), "--model", str(own.folder), "--json")
    cached = ("--cache", str(tmp_path / "cache.sqlite"), "--markdown", str(tmp_path / "report.md"))
    first, again = (json.loads(command(*args, *cached)[1])["results"][0] for _ in range(2))
    by_name = {f["category"]: f["n"] for f in first["categories"]}
    for name in ("gambling_betting", "tricks", "violent"):
        assert by_name[name] == 6
    assert again["categories"] == first["categories"]
    assert again["n_cached"] == 24
    assert "gambling_betting" in (tmp_path / "report.md").read_text()


def test_label_keeps_rows_by_them(own: Made, tmp_path: Path, command: Command) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": f"the river {i}"}) + "\n" for i in range(4)))
    args = ("label", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--device", "cpu")
    page = ("--report", str(tmp_path / "page.html"))
    told = command(*args, *page, "--model", str(own.folder), "--where", "category!=gambling_betting")
    assert told[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all("gambling_betting" not in row["guardkit"]["categories"] for row in rows)
    code, _, talk = command(*args, "--model", str(own.folder), "--where", "category=sexual")
    assert (code, "known: violent, gambling_betting, pii, tricks" in talk) == (2, True)


def test_a_fake_guard_has_one_too() -> None:
    guard = FakeGuard({"bet": "unsafe"}, category=GAMBLING)
    assert guard.check("a bet").categories == (GAMBLING,)
    assert guard.check([{"role": "user", "content": "?"}, {"role": "assistant", "content": "a bet"}]).categories == (
        GAMBLING,
    )
    redacts = Guard(guard.model, policy={"rules": [{"category": "gambling_betting", "action": "redact"}]})
    assert redacts.decide("a bet").action.value == "redact"


# -- servers and frameworks, without a model


def test_moderations_name_them_beside_openais() -> None:
    moderations = pytest.importorskip("guardkit_serve.moderations")
    found = moderations.result(FakeGuard({"bet": "unsafe"}, category=GAMBLING).decide("a bet"))
    assert found["flagged"]
    assert found["guardkit"]["categories"] == ["gambling_betting"]
    assert not any(found["categories"].values())


def test_a_servers_config_file_names_them(own: Made, tmp_path: Path) -> None:
    plan = pytest.importorskip("guardkit_serve.plan")
    (tmp_path / "policy.yaml").write_text(POLICY.format(second="violent"))
    config = tmp_path / "serve.yaml"
    config.write_text(f"models:\n  own: {own.folder}\npolicies:\n  mine: policy.yaml\n")
    assert [str(r.action.value) for r in plan.read_config(config).load_policies()["mine"].own_rules] == [
        "redact",
        "allow",
    ]
    config.write_text("models:\n  own: nano\npolicies:\n  mine: policy.yaml\n")
    with pytest.raises(PolicyError, match=r"policy\.yaml:3: unknown category 'gambling_betting'"):
        plan.read_config(config)
    remote = "models:\n  own:\n    model: http://127.0.0.1:9/v1\n    categories: [violent, Gambling & Betting]\n"
    config.write_text(f"{remote}policies:\n  mine: policy.yaml\n")
    found = plan.read_config(config)
    assert dict(found.models[0].options)["categories"] == ("Violent", "Gambling & Betting")
    assert found.load_policies()["mine"].own_rules[0].categories == {GAMBLING}
    config.write_text(remote.replace("[violent, Gambling & Betting]", "'a, b'"))
    with pytest.raises(PolicyError, match=r"serve\.yaml:4: 'categories' must be a list of labels"):
        plan.read_config(config)


def test_frameworks_keep_and_read_them() -> None:
    guard = FakeGuard({"bet": "unsafe"}, category=GAMBLING)
    decision = guard.decide("a bet")
    marks = pytest.importorskip("langchain_guardkit.marks")
    assert marks.decision_of(marks.summary(decision)).verdict.categories == (GAMBLING,)
    marks = pytest.importorskip("llama_index.postprocessor.guardkit.marks")
    assert marks.decision_of(marks.described(decision)).verdict.categories == (GAMBLING,)


def test_a_nodes_own_mark_is_no_text_of_the_document() -> None:
    nodes = pytest.importorskip("llama_index.postprocessor.guardkit.nodes")
    own = FakeGuard(category=GAMBLING).categories
    assert nodes._is_own_mark("guardkit_categories", "gambling_betting,violent", own)
    assert not nodes._is_own_mark("guardkit_categories", "gambling_betting", tuple(Category))
    assert not nodes._is_own_mark("guardkit_categories", "ignore_all_rules", own)
