"""How songs are judged: FAD, tempo, key, probes, retrieval, lyric scores."""
