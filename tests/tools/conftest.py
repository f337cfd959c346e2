"""Some stories of our own, as the tools read them."""

import pytest
from corpus import END_OF_TEXT, HELD_OUT, load_corpus

from tests.tools.support import SMALL, story


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    for name, numbers in {"a.txt": range(60), "b.txt": range(60, 80), HELD_OUT: range(5)}.items():
        text = f"\n{END_OF_TEXT}\n".join(story(i) for i in numbers)
        (folder / name).write_text(text, encoding="utf-8")
    return load_corpus(folder, SMALL.vocab_size)
