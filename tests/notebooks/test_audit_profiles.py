"""Notebook 08's settings: what each profile makes of the two specs, and its stored study."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from potkit.errors import ConfigError
from potkit.experiments import audit, yaml_form
from potkit.notebooks import audit_profiles as audits
from potkit.notebooks import runner
from potkit.report import audits as shown


def settings(profile: str, **changes) -> SimpleNamespace:
    return SimpleNamespace(**audits.AUDIT[profile] | changes)


def specs(profile: str, name: str) -> dict[str, yaml_form.ExperimentSpec]:
    """Setting -> its spec, as the profile changes them."""
    grid = yaml_form.GridSpec(audits.values(settings(profile), name))
    return {columns["setting"]: spec for columns, spec in grid.specs}


@pytest.mark.parametrize("name", audits.STUDIES)
def test_study_is_the_specs_as_they_are(name):
    plain = yaml_form.read(audits.folder() / f"{name}.yaml")
    made = yaml_form.GridSpec(audits.values(settings("study"), name))
    assert made.model_dump() == plain.model_dump()


@pytest.mark.parametrize("profile", audits.AUDIT)
def test_every_setting_changes_one_thing(profile):
    """Between the base and a setting, one field of the spec differs (pretraining and fine-tuning
    where it is clipping).
    """
    for name in settings(profile).settings:
        made = specs(profile, name)
        assert audits.BASE in made and len(made) >= 2
        base = made[audits.BASE].model_dump()
        for setting, spec in made.items():
            if setting == audits.BASE:
                continue
            changed = {k for k, v in spec.model_dump().items() if v != base[k]}
            expected = {"pretrain", "finetune"} if setting == "no clipping" else changed
            assert changed == expected and (len(changed) == 1 or setting == "no clipping")


@pytest.mark.parametrize("profile", ["smoke", "quick", "paper"])
def test_other_data_have_isolated_atoms_of_their_own(profile):
    for name in settings(profile).settings:
        for spec in specs(profile, name).values():
            assert "isolated_energies" not in spec.finetune
            assert spec.train.data in ("ani-mini", "ani-1x")


def test_paper_is_the_papers_network_noise_and_training():
    for setting, spec in specs("paper", "audit-faults").items():
        assert spec.model["preset"] == "denoise-paper", setting
        assert not spec.model.keys() & set(audits.SIZES), setting
        assert spec.arms["denoise"]["sigma"] == 0.2, setting
        assert spec.finetune["clip"] is None and spec.pretrain["epochs"] == 5
        assert "steps" not in spec.finetune and spec.supervised["forces"] == 0


def test_test_structures_are_of_other_molecules():
    grid = audits.grid(settings("smoke"))
    for experiment in (e for parts in grid.values() for e in parts):
        names = [set(s.system) for s in (experiment.train, experiment.test)]
        assert not names[0] & names[1]
        assert experiment.pretrain_on.fingerprint() == experiment.train.fingerprint()


def test_an_unknown_setting_is_named():
    run = settings("smoke", settings={"audit-faults": ["no such"]})
    with pytest.raises(ConfigError, match="audit-faults has no setting 'no such'; it has as it is"):
        audits.values(run, "audit-faults")


def test_the_device_goes_before_the_spec():
    made = audits.values(settings("study"), "audit-faults", device="cuda")
    assert made["pretrain"]["device"] == made["finetune"]["device"] == "cuda"


@pytest.mark.parametrize("name", audits.STUDIES)
def test_the_stored_study_is_whole(name):
    runs, how = audits.stored(name)
    assert (runs["status"] == "ok").all() and audit.base_of(runs) == audits.BASE
    grid = yaml_form.read(audits.folder() / f"{name}.yaml")
    assert list(dict.fromkeys(runs["setting"])) == [c["setting"] for c, _ in grid.specs]
    about = audits.described(runs, how)
    assert about["seeds"] >= 6 and about["test structures"] > 400 and about["hours"] > 0
    once = pd.concat([runs, runs])
    assert audits.described(once, how)["hours"] == about["hours"]


def test_the_two_studies_have_one_base():
    columns = ["arm", "seed", "forces_mae", "energy_mae"]
    bases = []
    for name in audits.STUDIES:
        runs, _ = audits.stored(name)
        bases.append(runs.loc[runs["setting"] == audits.BASE, columns].reset_index(drop=True))
    pd.testing.assert_frame_equal(*bases)


def test_every_choice_of_ours_is_in_the_study():
    runs, _ = audits.stored("audit-choices")
    assert set(shown.CHOICES) == set(runs["setting"]) - {audits.BASE}


def test_a_notebook_without_study_says_so():
    tables = dict(smoke=dict(a=1), quick=dict(a=2), paper=dict(a=3))
    with pytest.raises(ConfigError, match="no profile 'study'; it has smoke, quick, paper"):
        runner.settings("study", **tables)
    assert runner.settings("study", **tables, study=dict(a=4)).a == 4
    with pytest.raises(ConfigError, match="quick and study do not set the same names: b"):
        runner.settings("study", **tables, study=dict(a=4, b=5))
