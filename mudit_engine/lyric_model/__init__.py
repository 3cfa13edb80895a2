"""Lyrics written by a language model that cannot break the form: what was asked, rhymes, prompts,
constrained decoding, scores, training data.

from mudit_engine.lyric_model.form import parse_form
from mudit_engine.lyric_model.writer import write_lyrics
"""
