"""What runs were trained with: what all share, and what differs from run to run."""

from collections.abc import Mapping, Sequence

from sae_mlflow.report.contents import LayerRun

UNSET = "unset"


def shared_settings(runs: Sequence[LayerRun]) -> dict[str, dict[str, str]]:
    """The settings that are the same in all runs, by section and name.

    What stands in no section (`seed`, `d_in`) is in the one of the empty name, which is the first.
    """
    sections: dict[str, dict[str, str]] = {"": {}}
    for key, value in _first(runs).items():
        if all(run.settings.get(key) == value for run in runs):
            section, dot, name = key.partition(".")
            sections.setdefault(section if dot else "", {})[name or section] = value or UNSET
    return {section: values for section, values in sections.items() if values}


def differing_settings(runs: Sequence[LayerRun]) -> dict[str, list[str]]:
    """By key, each run's value, in the runs' order; of settings that differ among them."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    by_key = {key: [run.settings.get(key, "") or UNSET for run in runs] for key in keys}
    return {key: values for key, values in by_key.items() if len(set(values)) > 1}


def _first(runs: Sequence[LayerRun]) -> Mapping[str, str]:
    return runs[0].settings if runs else {}
