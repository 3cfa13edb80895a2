"""Lyrics by an OpenAI-compatible server: a small one on this machine."""

from __future__ import annotations

import http.server
import json
import threading

import llguidance
import numpy as np
import pytest

from mudit_engine.errors import InputError, ModelError
from mudit_engine.lyric_model.fill import fill_by_grammar
from mudit_engine.lyric_model.form import parse_form
from mudit_engine.lyric_model.prompts import answer
from mudit_engine.lyric_model.rhymes import line_syllables, rhyme_of
from mudit_engine.lyric_model.server import Server, song_grammar
from mudit_engine.lyric_model.writer import write_lyrics

FORM = parse_form("verse:4x7,chorus:2x5", rhyme="AABA")
SONG = answer(fill_by_grammar(FORM, np.random.default_rng(5)))


class Fake:
    """Answers with `texts` in turn, the last one for ever; keeps what it was asked."""

    def __init__(self, texts, *, owner="vllm", models=("qwen",)):
        self.texts, self.asked, fake = list(texts), [], self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def reply(self, document, code=200):
                body = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.reply({"data": [{"id": name, "owned_by": owner} for name in models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append(body)
                text = fake.texts.pop(0) if len(fake.texts) > 1 else fake.texts[0]
                if text is None:
                    self.reply({"error": "overloaded"}, 503)
                else:
                    self.reply({"choices": [{"message": {"content": text}}]})

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()


@pytest.fixture
def serve():
    running = []

    def start(*texts, **options):
        running.append(Fake(texts, **options))
        return running[-1]

    yield start
    for fake in running:
        fake.server.shutdown()
        fake.server.server_close()


def holds(grammar, text):
    """Whether a GBNF grammar takes a text, by a judge of its own."""
    from llguidance.gbnf_to_lark import any_to_lark

    class Bytes:
        bos_token_id, eos_token_id, special_token_ids = None, 256, (256,)
        tokens = (*(bytes([value]) for value in range(256)), b"<|end|>")

        def __call__(self, said):
            return list(said)

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), n_vocab=257, slices=[])
    matcher = llguidance.LLMatcher(
        tokenizer, llguidance.LLMatcher.grammar_from_lark(any_to_lark(grammar))
    )
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_grammar_that_servers_get_takes_the_song_and_nothing_else(language):
    form = parse_form("verse:4x7,chorus:2x6-7,outro", rhyme="AABA", language=language)
    sections = fill_by_grammar(form, np.random.default_rng(1))
    text = answer(sections)
    ends = {
        name: rhyme_of(line)
        for own, (_, lines) in zip(form.groups(), sections, strict=True)
        for name, line in zip(own, lines, strict=True)
    }
    grammar = song_grammar(form, ends)
    assert holds(grammar, text)
    lines = text.splitlines()
    assert not holds(grammar, "\n".join([*lines[:1], *lines[2:]]) + "\n")
    assert not holds(grammar, text.replace("[chorus]", "[verse]"))
    other = dict.fromkeys(ends, "u" if language == "zh" else "AA R T")
    assert ends["0A"] not in other.values()
    assert not holds(song_grammar(form, other), text)


@pytest.mark.parametrize(
    ("owner", "field"),
    [("vllm", "structured_outputs"), ("sglang", "ebnf"), ("llamacpp", "grammar")],
)
def test_each_kind_of_server_is_given_the_grammar_in_its_own_field(serve, owner, field):
    fake = serve(SONG, owner=owner)
    written = write_lyrics("夏夜", FORM, model=Server(fake.url), rhyme_class=None)
    [asked] = fake.asked
    given = asked[field]["grammar"] if owner == "vllm" else asked[field]
    assert given.startswith("root ::= ")
    assert asked["model"] == "qwen"
    assert asked["messages"][-1]["content"].startswith("主题：夏夜")
    assert answer((s.kind, [x.text for x in s.lines]) for s in written.lyrics.sections) == SONG
    assert written.notes == ()


def test_without_guided_decoding_lines_are_checked_and_asked_for_again(serve):
    good = SONG.splitlines()
    broken = SONG.replace(good[2], good[2][:-2])
    fake = serve(broken, "1. 太短了", f"好的：\n“{good[2]}。”", owner="someone")
    written = write_lyrics("夏夜", FORM, model=Server(fake.url))
    assert "grammar" not in fake.asked[0]
    assert len(fake.asked) == 3
    assert [line.text for line in written.lyrics.sections[0].lines] == good[1:5]


def test_what_stays_broken_is_written_by_the_grammar_and_said(serve):
    fake = serve("对不起，我不会写歌。", owner="someone")
    written = write_lyrics("夏夜", FORM, model=Server(fake.url), seed=2)
    assert len(written.notes) == 6
    assert all("embedded grammar" in note for note in written.notes)
    assert all(line_syllables(x.text) == 7 for x in written.lyrics.sections[0].lines)


def test_thoughts_and_tags_of_other_styles_are_read(serve):
    text = "<think>hmm</think>\n**主歌**\n" + SONG.replace("[verse]\n", "").replace(
        "[chorus]", "## 副歌"
    )
    fake = serve(text, owner="someone")
    written = write_lyrics("夏夜", FORM, model=Server(fake.url))
    assert len(fake.asked) == 1
    assert written.notes == ()


def test_a_server_that_is_not_there_or_fails_is_named(serve):
    with pytest.raises(ModelError, match="no OpenAI-compatible server"):
        Server("http://127.0.0.1:9")
    fake = serve(None)
    with pytest.raises(ModelError, match="answered 503"):
        write_lyrics("夏夜", FORM, model=Server(fake.url))


def test_among_several_models_one_must_be_named(serve):
    fake = serve(SONG, models=("a", "b"))
    with pytest.raises(InputError, match="--served-model"):
        Server(fake.url)
    assert Server(fake.url, model="b").model == "b"
