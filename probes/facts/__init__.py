"""Stated facts about gpt2 and about the bundled model, measured again."""
