"""Sections of a plan whose ``kind`` decides what else they say: task, model, strategy."""
