"""The words that prompts are made of; only words of one token are used."""

from __future__ import annotations

# Names, places and things are common in children's stories, and one token each both for GPT-2 and
# for the bundled model.
BOYS = "Tim Tom Ben Max Sam Bob Jack John".split()  # noqa: SIM905
GIRLS = "Lily Sue Mia Lucy Anna Sara Amy Sally".split()  # noqa: SIM905
NAMES = [*BOYS, *GIRLS]
PLACES = """park garden kitchen yard forest store shop house room zoo museum library
    market""".split()  # noqa: SIM905
OBJECTS = """ball toy book box doll hat stick car rock flower bag boat basket cake bottle key
    picture cup balloon""".split()  # noqa: SIM905
EVENTS = """war siege voyage reign famine drought trial search debate project mission exhibition
    construction campaign expedition marriage strike plague alliance""".split()  # noqa: SIM905
ARGUMENTS = """load size files last name path value index count mode data text key line width
    height start end color limit offset source target result user node parent group level
    token""".split()  # noqa: SIM905
WORDS = """oil column piece crime population unit dark river window paper stone music winter table
    glass horse island metal north ship bread cloud engine flower""".split()  # noqa: SIM905
