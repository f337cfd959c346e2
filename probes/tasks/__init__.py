"""Prompts with known answers."""
