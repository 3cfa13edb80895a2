"""Systems in folders: pairing and refusals by name, planted differences, the page and tables."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from mudit_engine.audio import save_audio
from mudit_engine.cli._eval_songs import lyrics_by
from mudit_engine.cli.main import run
from mudit_engine.errors import InputError
from mudit_engine.evaluation.listening import Listener
from mudit_engine.evaluation.system_report import write_latex, write_page
from mudit_engine.evaluation.systems import (
    Asked,
    Comparison,
    Difference,
    System,
    SystemRow,
    compare,
    load_requests,
)
from mudit_engine.metrics.embeddings import Embedder
from mudit_engine.metrics.figures import Figure
from mudit_engine.training.dataset.transcribe import Transcript

RATE = 16000
SECONDS = 4.0


def song(seed: int, *, level: float = 0.3, noise: float = 0.0) -> torch.Tensor:
    """A few partials of its own, with a beat of 120 a minute."""
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(round(RATE * SECONDS)) / RATE
    pitches = 110 * 2 ** (torch.randint(0, 24, (3,), generator=g) / 12)
    wave = sum(torch.sin(2 * math.pi * float(p) * t) for p in pitches) / 3
    beat = torch.exp(-8 * (t % 0.5))
    audio = level * wave * beat + noise * torch.randn(t.shape, generator=g)
    return audio.clamp(-1, 1)[None]


def spread(audio: torch.Tensor, rate: int) -> torch.Tensor:
    """Cheap features: levels of eight bands in windows of half a second."""
    windows = audio.mean(0).unfold(0, rate // 2, rate // 4)
    spectrum = torch.fft.rfft(windows).abs()
    return torch.stack([band.mean(1) for band in spectrum.chunk(8, 1)], 1).log1p()


FEATURES = Embedder("bands", "bands", spread)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("systems")
    for number in range(6):
        save_audio(root / f"good/{number}.wav", song(number), RATE)
        save_audio(root / f"loud/{number}.flac", song(number, level=0.9), RATE)
        save_audio(root / f"noisy/{number}.wav", song(number, noise=0.2), RATE)
        save_audio(root / f"reference/{number}.wav", song(100 + number), RATE)
    lines = [
        {"id": str(n), "description": "BPM 120", "user_type": ("amateur", "professional")[n % 2]}
        for n in range(6)
    ]
    (root / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


@pytest.fixture(scope="module")
def comparison(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    systems = [System.of(folders / name) for name in ("good", "loud", "noisy")]
    return compare(
        systems,
        System.of(folders / "reference", name="reference"),
        load_requests(folders / "requests.jsonl"),
        Listener(tmp_path_factory.mktemp("work")),
        embedders=[FEATURES],
    )


def row(comparison: Comparison, system: str, user: str = "all") -> SystemRow:
    return next(one for one in comparison.rows if (one.system, one.user) == (system, user))


def value(comparison: Comparison, system: str, name: str) -> float:
    found = row(comparison, system).figures[name].value
    assert found is not None
    return found


def test_rows_are_of_every_user_type_and_of_all(comparison: Comparison) -> None:
    users = {(one.system, one.user): one.songs for one in comparison.rows}
    assert users["good", "all"] == 6
    assert users["good", "amateur"] == users["good", "professional"] == 3
    assert len(users) == 9


def test_distances_and_levels_show_what_was_planted(comparison: Comparison) -> None:
    for name in ("fad_bands", "kad_bands"):
        assert value(comparison, "noisy", name) > 3 * value(comparison, "good", name)
    assert value(comparison, "loud", "loudness") - value(comparison, "good", "loudness") == (
        pytest.approx(20 * math.log10(3), abs=0.3)
    )
    assert value(comparison, "good", "tempo") == 1.0
    assert comparison.facts["reference_songs"] == 6


def test_differences_are_tested_and_adjusted(comparison: Comparison) -> None:
    found = {(one.a, one.b, one.measure): one for one in comparison.differences}
    loud = found["good", "loud", "loudness"]
    assert loud.difference < -8 and loud.p == pytest.approx(2 / 2**6) and loud.songs == 6
    assert all(one.adjusted_p >= one.p for one in comparison.differences)


def test_measurements_are_kept(folders: Path, tmp_path: Path) -> None:
    calls = []

    def counted(audio: torch.Tensor, rate: int) -> torch.Tensor:
        calls.append(rate)
        return spread(audio, rate)

    for _ in range(2):
        compare(
            [System.of(folders / "good")],
            System.of(folders / "reference"),
            None,
            Listener(tmp_path),
            embedders=[Embedder("bands", "counted", counted)],
        )
    assert len(calls) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "good/3.wav").unlink(), "'good' lacks 3 "),
        (lambda root: save_audio(root / "good/x.wav", song(1), RATE), "nobody asked for: x"),
        (lambda root: save_audio(root / "good/3.flac", song(1), RATE), "two songs of the id '3'"),
        (lambda root: (root / "good/3.wav").write_bytes(b"RIFF"), "3.wav"),
    ],
    ids=["missing", "extra", "doubled", "broken"],
)
def test_songs_that_do_not_pair_are_refused(
    folders: Path, tmp_path: Path, change: object, message: str
) -> None:
    import shutil

    root = Path(shutil.copytree(folders, tmp_path / "root"))
    change(root)  # type: ignore[operator]
    with pytest.raises(InputError, match=re.escape(message)):
        compare(
            [System.of(root / "good")],
            System.of(root / "reference"),
            load_requests(root / "requests.jsonl"),
            Listener(tmp_path / "work"),
            embedders=[FEATURES],
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[]", '"id" is needed'),
        ('{"id": 3}', '"id" is needed'),
        ('{"id": "a", "tempo": 3}', "unknown field"),
        ('{"id": "a", "bpm": "fast"}', "bpm 'fast'"),
        ('{"id": "a", "key": "H"}', "key 'H'"),
        ('{"id": "a", "user_type": "child"}', "user_type 'child'"),
        ('{"id": "a"}\n{"id": "a"}', "line 2.*twice"),
        ("", "are empty"),
    ],
)
def test_requests_are_checked(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "r.jsonl").write_text(line)
    with pytest.raises(InputError, match=message):
        load_requests(tmp_path / "r.jsonl")


def test_a_page_for_eyes_and_a_table_for_a_paper(
    folders: Path, comparison: Comparison, tmp_path: Path
) -> None:
    systems = [System.of(folders / name) for name in ("good", "loud", "noisy")]
    asked = load_requests(folders / "requests.jsonl")
    page = write_page(comparison, systems, asked, tmp_path / "report", copy_audio=True)
    text = page.read_text()
    sources = re.findall(r'src="([^"]+)"', text)
    files = [source for source in sources if not source.startswith("data:")]
    assert len(files) == 6 * 3 + 6 and all((page.parent / source).is_file() for source in files)
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text
    write_latex(comparison, tmp_path / "songs.tex")
    latex = (tmp_path / "songs.tex").read_text()
    assert latex.count("\\\\") == 1 + len(comparison.rows) and "fad\\_bands" in latex


def test_names_are_escaped(tmp_path: Path, folders: Path) -> None:
    evil = System("<b>&_%", System.of(folders / "good").songs)
    rows = [SystemRow(evil.name, "all", 6, {"fad_x": Figure(1.0, 0.5, 1.5, 6)})]
    difference = Difference(evil.name, "b", "loudness", 6, 1.0, 0.5)
    made = Comparison(rows, [difference], {}, {"reference": "r", "features": ["x"]})
    assert "<b>&" not in write_page(made, [evil], None, tmp_path / "p").read_text()
    write_latex(made, tmp_path / "t.tex")
    assert "\\&\\_\\%" in (tmp_path / "t.tex").read_text()


def test_the_command(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    arguments = ["eval", "songs", str(folders / "good"), str(folders / "noisy")]
    arguments += ["--reference", str(folders / "reference"), "--work", str(tmp_path / "work")]
    arguments += ["--requests", str(folders / "requests.jsonl"), "--out", str(out), "--json"]
    assert run(arguments) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert {one["system"] for one in results["rows"]} == {"good", "noisy"}
    names = {path.name for path in out.iterdir()}
    assert {"index.html", "songs.csv", "songs.tex", "songs.json"} <= names
    assert run([*arguments[:3], "--reference", str(tmp_path / "nowhere")]) == 2
    assert run([*arguments[:-1], "--features", "vggish"]) == 2
    assert run([*arguments[:-1], "--features", f"clap:{tmp_path}"]) == 1


def test_similarity_to_what_was_asked(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SST and ASOA through the command: a song is its own target's twin, noise is not."""
    pytest.importorskip("transformers")
    from tiny_encoders import save_clap, save_encoder

    lines = [
        {"id": str(n), "description": "slow piano", "reference": f"good/{n}.wav"} for n in range(6)
    ]
    requests = folders / "targets.jsonl"
    requests.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["eval", "songs", str(folders / "good"), str(folders / "noisy"), "--json"]
    arguments += ["--reference", str(folders / "reference"), "--work", str(tmp_path / "work")]
    arguments += ["--sst", str(save_clap(tmp_path / "clap"))]
    arguments += ["--asoa", str(save_encoder(tmp_path / "mert"))]
    assert run(arguments) == 2, "they need requests"
    capsys.readouterr()
    assert run([*arguments, "--requests", str(requests)]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    found = {one["system"]: one["figures"] for one in results["rows"] if one["user"] == "all"}
    assert found["good"]["asoa"]["value"] == pytest.approx(1.0, abs=1e-5)
    assert found["noisy"]["asoa"]["value"] < 0.9999
    assert -1 <= found["good"]["sst"]["value"] <= 1 and found["good"]["sst"]["n"] == 6
    assert results["facts"]["similarities"]["asoa"].endswith("(fixed)")


def test_sung_lines_are_held_against_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = {1.0: "月亮升起来", 2.0: "月亮"}

    class Stub:
        def __init__(self, separate: None, transcribe: str) -> None:
            assert transcribe == "funasr:some"

        def transcribe(self, audio: torch.Tensor, rate: int) -> Transcript:
            return Transcript(lyrics=heard[float(audio[0, 0])])

    monkeypatch.setattr("mudit_engine.training.dataset.transcribe.Transcriber", Stub)
    found = lyrics_by("funasr:some")
    wish = Asked("a", lyrics="[verse]\n月亮升起来\n[inst]")
    assert (found.name, found.key) == ("lyrics", "funasr:some")
    assert found.measure(torch.full((1, 9), 1.0), RATE, wish) == 0.0
    assert 0 < (found.measure(torch.full((1, 9), 2.0), RATE, wish) or 0) < 1
    assert found.measure(torch.full((1, 9), 2.0), RATE, Asked("b")) is None
