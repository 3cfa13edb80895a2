"""From words to what the models read: lyrics -> sections -> phoneme tokens, descriptions ->
fragments.

from mudit_engine.text.lyrics import parse_lyrics
from mudit_engine.text.phonemes import phonemize
"""
