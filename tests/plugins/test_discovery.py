"""Finding and loading plugins, on entry points and modules that are made up."""

from __future__ import annotations

import sys
import tomllib
from types import ModuleType, SimpleNamespace

import pytest

from reallm.errors import PluginError, UnknownNameError
from reallm.hf.family import HFFamily
from reallm.hookspecs import HOOK_API, hookimpl
from reallm.plugins import configs, registry
from reallm.plugins.finder import Entry, Plan, Plugin, plan, promise_of
from reallm.plugins.known import known_distributions
from reallm.plugins.loader import Loaded, Offer, load
from reallm.plugins.registry import Registry, install_hint
from reallm.specs import DatasetSpec
from workspace import ROOT

SPEC = DatasetSpec("somewhere:Dataset", "somewhere:Config")
LLAMA = [
    Entry("reallm-hf-llama", "0.1", "family.llama", "llama.plugin"),
    Entry("reallm-hf-llama", "0.1", "family.codellama", "llama.plugin"),
]


# ---------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("entry", "promise"),
    [
        ("family.llama", ("family", "llama")),
        ("family.qwen2.5", ("family", "qwen2.5")),
        ("dataset.my-data", ("dataset", "my-data")),
        ("llama", None),
        ("family.", None),
        ("famly.llama", None),
    ],
)
def test_an_entry_point_promises_what_its_name_says(entry, promise):
    assert promise_of(entry) == promise


def test_entry_points_of_one_module_are_one_plugin():
    (plugin,) = plan(LLAMA).plugins
    assert plugin.label == "reallm-hf-llama[family.codellama,family.llama]"
    assert set(plugin.promises) == {("family", "llama"), ("family", "codellama")}
    assert not plugin.is_open


def test_the_same_module_in_two_distributions_is_two_plugins():
    other = Entry("my-llama", "3", "family.llama", "llama.plugin")
    assert [plugin.distribution for plugin in plan([*LLAMA, other]).plugins] == ["my-llama", "reallm-hf-llama"]


def test_the_core_is_listed_first():
    core = Entry("reallm-core", "0.1", "algorithm.sft", "reallm.builtin")
    other = Entry("a-plugin", "1", "plugin", "a")
    assert [plugin.distribution for plugin in plan([other, core]).plugins] == ["reallm-core", "a-plugin"]


@pytest.mark.parametrize("disabled", ["reallm-hf-llama", "Reallm_HF.Llama", " family.llama , family.codellama,"])
def test_a_plugin_without_enabled_entry_points_is_blocked(disabled):
    (plugin,) = plan(LLAMA, disabled).plugins
    assert not plugin.active
    assert not plugin.promises


@pytest.mark.parametrize("disabled", ["family.llama", "reallm_hf_llama[family.llama]"])
def test_one_entry_point_can_be_blocked_alone(disabled):
    (plugin,) = plan(LLAMA, disabled).plugins
    assert plugin.promises == (("family", "codellama"),)
    assert plugin.blocked_promises == (("family", "llama"),)


def test_what_is_disabled_but_not_installed_is_reported():
    found = plan(LLAMA, "family.llama,reallm-hf-lama,other[family.llama],reallm-hf-llama[family.other]")
    assert found.unknown_disabled == ("reallm-hf-lama", "other[family.llama]", "reallm-hf-llama[family.other]")


# ---------------------------------------------------------------- loading


@pytest.fixture
def module(monkeypatch):
    """Makes a module `made_up` with these attributes; hooks are given as functions without the marker."""

    def make(**attributes):
        made = ModuleType("made_up")
        for name, value in attributes.items():
            setattr(made, name, value)
        monkeypatch.setitem(sys.modules, "made_up", made)
        return made

    return make


def datasets(returned):
    @hookimpl
    def reallm_datasets():
        return returned

    return reallm_datasets


def families(returned):
    @hookimpl
    def reallm_hf_families():
        return returned

    return reallm_hf_families


def made_up(*entries, blocked=()):
    return Plugin("made-up", "1.0", "made_up", entries, blocked)


def family(*names):
    return HFFamily(names, "made_up", ("MadeUpForCausalLM",), config=None, weights=None)


def names_of(loaded):
    return [offer.name for offer in loaded.offers]


def test_a_family_is_offered_under_each_of_its_names(module):
    module(reallm_hf_families=families([family("a", "b")]))
    loaded = load(made_up("family.a", "family.b"))
    assert (names_of(loaded), loaded.failures) == (["a", "b"], ())


def test_a_hook_may_yield_families(module):
    module(reallm_hf_families=families(one for one in [family("a")]))
    assert names_of(load(made_up("family.a"))) == ["a"]


def test_an_object_in_a_module_may_be_the_plugin(module):
    module(plugin=SimpleNamespace(reallm_datasets=datasets({"x": SPEC})))
    assert names_of(load(Plugin("made-up", "1.0", "made_up:plugin", ("dataset.x",)))) == ["x"]


@pytest.mark.parametrize(
    ("hooks", "reason"),
    [
        ({"reallm_datasets": datasets(None)}, "reallm_datasets returned a value of type NoneType, not a mapping"),
        ({"reallm_datasets": datasets([SPEC])}, "reallm_datasets returned a value of type list, not a mapping"),
        ({"reallm_datasets": datasets({"": SPEC})}, "the name '', which is not a non-empty string"),
        ({"reallm_datasets": datasets({3: SPEC})}, "the name 3, which is not a non-empty string"),
        ({"reallm_hf_families": families(family("x"))}, "returned a value of type HFFamily, not a list of HFFamily"),
        ({"reallm_hf_families": families({"x": family("x")})}, "type dict, not a list of HFFamily"),
        ({"reallm_hf_families": families([SPEC])}, "an element is a value of type DatasetSpec, not HFFamily"),
        ({"reallm_hf_families": families([family("x"), family("x")])}, "reallm_hf_families offers 'x' twice"),
        ({"reallm_hf_families": families([HFFamily("x", "x", (), None, None)])}, "write names=('x',)"),
        ({"reallm_datasets": lambda: {"x": SPEC}}, "the function reallm_datasets is not marked with @hookimpl"),
        ({}, "implements no hook; there are reallm_datasets, "),
    ],
)
def test_what_a_hook_may_not_return_is_a_reason(module, hooks, reason):
    module(**hooks)
    (failure,) = load(made_up("plugin")).failures
    assert reason in failure


def test_a_plugin_that_ends_the_program_has_failed_and_the_program_goes_on(module):
    def leave():
        raise SystemExit(3)

    module(reallm_datasets=hookimpl(leave, specname="reallm_datasets"))
    assert load(made_up("plugin")).failures == ("reallm_datasets raised SystemExit: 3",)


@pytest.mark.parametrize(
    ("module_of_plugin", "reason"),
    [
        ("absent_package.plugin", "its module 'absent_package' does not exist; pip install --force-reinstall made-up"),
        ("reallm.absent", "its module 'reallm.absent' does not exist; pip install --force-reinstall made-up"),
        ("needs_submodule", "needs the module 'json.absent', which 'json' here lacks; pip install --upgrade json"),
        ("needs_package", "needs the module 'absent.inner', which is not installed; pip install absent"),
    ],
)
def test_a_module_that_is_missing_is_a_reason_with_a_remedy(tmp_path, monkeypatch, module_of_plugin, reason):
    (tmp_path / "needs_submodule.py").write_text("import json.absent")
    (tmp_path / "needs_package.py").write_text("raise ModuleNotFoundError('no', name='absent.inner')")
    monkeypatch.syspath_prepend(tmp_path)
    assert load(Plugin("made-up", "1.0", module_of_plugin, ("dataset.x",))).failures == (reason,)


def test_an_object_that_does_not_exist_is_a_reason(module):
    module()
    (failure,) = load(Plugin("made-up", "1.0", "made_up:absent", ("dataset.x",))).failures
    assert failure == "cannot be imported: AttributeError: module 'made_up' has no attribute 'absent'"


def test_an_object_that_cannot_be_looked_at_is_a_reason(module):
    class Touchy:
        @property
        def REALLM_HOOK_API(self):  # noqa: N802
            raise ValueError("do not touch")

    module(plugin=Touchy())
    (failure,) = load(Plugin("made-up", "1.0", "made_up:plugin", ("dataset.x",))).failures
    assert failure == "cannot be loaded: ValueError: do not touch"


def test_a_hook_of_a_later_version_can_be_optional(module):
    @hookimpl(optionalhook=True)
    def reallm_rewards_of_the_future():
        return {}

    module(reallm_datasets=datasets({"x": SPEC}), reallm_rewards_of_the_future=reallm_rewards_of_the_future)
    assert load(made_up("dataset.x")).failures == ()


MAJOR, MINOR = HOOK_API


@pytest.mark.parametrize("version", [None, f"{MAJOR}.{MINOR}", f"{MAJOR}.0"])
def test_a_plugin_made_for_this_or_an_earlier_minor_version_is_accepted(module, version):
    module(reallm_datasets=datasets({"x": SPEC}), REALLM_HOOK_API=version)
    assert load(made_up("dataset.x")).failures == ()


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (f"{MAJOR}.{MINOR + 1}", "pip install --upgrade reallm-core"),
        (f"{MAJOR + 1}.0", "pip install --upgrade reallm-core"),
        (f"{MAJOR - 1}.9", "pip install --upgrade made-up"),
        ("one", "is not a version such as '1.0'"),
        (1.0, "is not a version such as '1.0'"),
    ],
)
def test_a_plugin_made_for_another_version_is_refused(module, version, remedy):
    module(reallm_datasets=datasets({"x": SPEC}), REALLM_HOOK_API=version)
    loaded = load(made_up("dataset.x"))
    assert loaded.offers == ()
    assert remedy in loaded.failures[0]
    assert str(version) in loaded.failures[0]


# ---------------------------------------------------------------- promises


def test_a_plugin_that_promises_all_by_name_must_offer_just_that(module):
    module(reallm_datasets=datasets({"x": SPEC, "y": SPEC}))
    assert names_of(load(made_up("dataset.x", "dataset.y"))) == ["x", "y"]
    for entries in (["dataset.x"], ["dataset.x", "dataset.y", "dataset.z"]):
        loaded = load(made_up(*entries))
        assert loaded.offers == ()
        assert len(loaded.failures) == 1


def test_a_plugin_with_an_entry_point_of_another_form_may_offer_more_but_not_less(module):
    module(reallm_datasets=datasets({"x": SPEC, "y": SPEC}))
    assert names_of(load(made_up("dataset.x", "plugin"))) == ["x", "y"]
    assert load(made_up("dataset.z", "plugin")).failures


def test_what_a_blocked_entry_point_promises_is_not_offered(module):
    module(reallm_datasets=datasets({"x": SPEC, "y": SPEC}))
    loaded = load(made_up("dataset.x", "dataset.y", blocked=("dataset.y",)))
    assert (names_of(loaded), loaded.failures) == (["x"], ())
    assert names_of(load(made_up("dataset.x", "plugin", blocked=("plugin",)))) == ["x"]
    assert names_of(load(made_up("dataset.x", "plugin", blocked=("dataset.x",)))) == ["y"]


# ---------------------------------------------------------------- looking up


def offering(*offered, failures=()):
    """A plugin's loader that gives these datasets, and counts."""

    def loader(plugin):
        loader.calls.append(plugin.distribution)
        mine = offered if not plugin.promises else [name for _, name in plugin.promises]
        offers = () if failures else tuple(Offer("dataset", name, SPEC, plugin) for name in mine)
        return Loaded(plugin, offers, failures)

    loader.calls = []
    return loader


def datasets_of(**distributions):
    """A plan with one plugin for each distribution, which has these entry points."""
    return plan([
        Entry(name, "1.0", entry, f"{name}.plugin") for name, entries in distributions.items() for entry in entries
    ])  # fmt: skip


def test_a_look_up_loads_only_what_promises_the_name_or_promises_nothing_and_only_once():
    loader = offering("whatever")
    found = Registry(datasets_of(a=["dataset.x"], b=["dataset.y"], c=["plugin"]), loader)
    assert found.get("dataset", "x") is SPEC
    assert found.get("dataset", "x") is SPEC
    assert loader.calls == ["a", "c"]


def test_declared_names_cost_no_import():
    loader = offering()
    assert Registry(datasets_of(a=["dataset.x", "dataset.w"], c=["plugin"]), loader).declared("dataset") == ["w", "x"]
    assert loader.calls == []


def test_the_full_listing_has_all_names_but_those_in_conflict():
    found = Registry(datasets_of(a=["dataset.x", "dataset.both"], b=["dataset.y", "dataset.both"]), offering())
    assert found.names("dataset") == ["x", "y"]
    assert list(found.conflicts()) == [("dataset", "both")]
    with pytest.raises(PluginError, match=r"by a 1.0 \(a.plugin\) and by b 1.0 \(b.plugin\); uninstall one, or set"):
        found.get("dataset", "both")


def test_a_failed_plugin_is_the_answer_for_what_it_promises():
    found = Registry(datasets_of(a=["dataset.x"]), offering(failures=("it is broken",)))
    with pytest.raises(
        PluginError, match=r"^the dataset 'x' is in a 1.0 \(a.plugin\), which failed: it is broken$"
    ) as raised:
        found.get("dataset", "x")
    assert not isinstance(raised.value, UnknownNameError)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("dataset", "ridles", "did you mean 'riddles'? (installed datasets: riddles)"),
        ("dataset", "Riddles", "did you mean 'riddles'?"),
        ("dataset", "prompt_answer", "; pip install reallm-datasets (installed"),
        ("dataset", "promt_answer", "did you mean 'prompt_answer'? pip install reallm-datasets"),
        ("dataset", "quite-unknown", "offers the dataset 'quite-unknown' (installed datasets: riddles)"),
        ("family", "mistral", "; pip install reallm-hf-mistral (installed families: none"),
        ("family", "my_model", "; pip install reallm-hf-my-model (if it exists)"),
    ],
)
def test_an_unknown_name_says_what_is_near_or_what_to_install(kind, name, words):
    with pytest.raises(UnknownNameError) as raised:
        Registry(datasets_of(a=["dataset.riddles"]), offering()).get(kind, name)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_known_name_that_an_outdated_distribution_lacks_says_to_upgrade_it():
    outdated = plan([Entry("reallm-datasets", "0.0.1", "dataset.prompt", "reallm_datasets.plugin")])
    with pytest.raises(UnknownNameError, match="pip install --upgrade reallm-datasets"):
        Registry(outdated, offering()).get("dataset", "prompt_answer")


def test_with_no_plugin_at_all_an_unknown_name_says_where_datasets_come_from():
    advice = "installed datasets: none; pip install reallm-datasets or reallm-rewards has datasets"
    with pytest.raises(UnknownNameError, match=advice):
        Registry(Plan(())).get("dataset", "anything")


def test_a_thing_is_found_by_its_name_alone():
    loader = offering()
    found = Registry(datasets_of(a=["dataset.x"], b=["dataset.y"]), loader)
    assert [offer.kind for offer in found.offers_named("x")] == ["dataset"]
    assert loader.calls == ["a"]
    with pytest.raises(UnknownNameError, match="offers anything named 'z'"):
        found.offers_named("z")


# ---------------------------------------------------------------- known distributions


@pytest.mark.parametrize("distribution", [item.distribution for item in known_distributions()])
def test_what_is_known_of_our_distributions_is_what_their_entry_points_promise(distribution):
    project = tomllib.loads((ROOT / "packages" / distribution / "pyproject.toml").read_text(encoding="utf-8"))
    (item,) = [item for item in known_distributions() if item.distribution == distribution]
    promised = {f"{kind}.{name}" for kind, names in item.offers.items() for name in names}
    assert promised == set(project["project"]["entry-points"]["reallm"])


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("family", "llama", "pip install reallm-hf-llama"),
        ("dataset", "rw_pair", "pip install reallm-datasets"),
        ("family", "qwen2", "pip install reallm-hf-qwen"),
        ("family", "nemotron", "pip install reallm-hf-nemotron (if it exists)"),
        ("family", "; rm -rf", ""),
        ("dataset", "riddles", ""),
    ],
)
def test_the_install_hint_is_a_fact_a_marked_guess_or_nothing(kind, name, hint):
    assert install_hint(kind, name) == hint


def test_a_known_configuration_class_comes_from_the_dataset_it_belongs_to(monkeypatch):
    class PromptAnswerDatasetConfig:
        pass

    spec = DatasetSpec("somewhere:Dataset", PromptAnswerDatasetConfig)
    monkeypatch.setattr(registry, "get", lambda kind, name: {("dataset", "prompt_answer"): spec}[kind, name])
    assert configs.dataset_config_class("PromptAnswerDatasetConfig") is PromptAnswerDatasetConfig
    with pytest.raises(AttributeError, match="did you mean 'PromptAnswerDatasetConfig'"):
        configs.dataset_config_class("PromptAnswersDatasetConfig")
