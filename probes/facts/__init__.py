"""Published facts about gpt2, measured again."""
