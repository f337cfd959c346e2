"""The words that prompts are made of; only words of one token are used."""

from __future__ import annotations

NAMES = """Mary John Alice Tom James Kate Anna Paul Sarah David Emma Peter Laura Jack Lucy Mark
    Jane Henry Rose Simon Helen Frank Susan Robert Martin Claire George Amy""".split()  # noqa: SIM905
PLACES = """park school garden station market library kitchen hospital office museum beach church
    bank hotel house shop""".split()  # noqa: SIM905
OBJECTS = """book letter key ring ball drink map basket picture ticket hat bottle computer necklace
    box watch""".split()  # noqa: SIM905
EVENTS = """war siege voyage reign famine drought trial search debate project mission exhibition
    construction campaign expedition marriage strike plague alliance""".split()  # noqa: SIM905
ARGUMENTS = """load size files last name path value index count mode data text key line width
    height start end color limit offset source target result user node parent group level
    token""".split()  # noqa: SIM905
WORDS = """oil column piece crime population unit dark river window paper stone music winter table
    glass horse island metal north ship bread cloud engine flower""".split()  # noqa: SIM905
