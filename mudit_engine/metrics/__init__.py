"""What is measured of songs: Frechet distance, similarity, notes, rhythm and key, sung phonemes.
What judges by it: evaluation/.
"""
