"""The one reader of requests: what a model understands of a description and lyrics.

    reader = RequestReader(config, vae, text=chinmu)
    understood = reader.read(request)           # checks, phonemes, plan: no network runs
    song = reader.inputs(understood)            # SongInputs: text tower and reference have run

The pipeline, the Triton models and the server all read by it, so that a request means the same song
everywhere. A song's seed goes from here into SongInputs, whose noise is drawn from it
(runtime/denoiser.py), and into the plan of its chords (text/outline.py).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.audio import audio_seconds, load_audio, resample, to_channels
from mudit_engine.config import ModelConfig, SamplerConfig, check_sampler, parse_config
from mudit_engine.diffusion.samplers import SamplerTable, sampler_table
from mudit_engine.editing import Edit, open_edit, went_on
from mudit_engine.errors import ConfigError, InputError
from mudit_engine.hearing import BEAT_IN, CHORDS_IN, HeardPart, hear_file
from mudit_engine.models.fewstep import steps_of
from mudit_engine.models.outline import outline_rows
from mudit_engine.models.saved_latents import load_latents
from mudit_engine.models.vae import SpectralVAE
from mudit_engine.request import SongRequest
from mudit_engine.runtime.denoiser import SongInputs, TextEncoder
from mudit_engine.runtime.limits import SongShape
from mudit_engine.text.accounting import Fate
from mudit_engine.text.composition.given import GivenMelody, parse_melody, read_melody_file
from mudit_engine.text.composition.typed import (
    CONTROLS,
    controlled,
    known_style,
    told_words,
    words_of,
)
from mudit_engine.text.descriptions import description_fragments, sentences
from mudit_engine.text.harmony import chord_names
from mudit_engine.text.lyrics import Lyrics
from mudit_engine.text.mandarin import is_han
from mudit_engine.text.outline import Controls, Outline, SongPlan, plan_song
from mudit_engine.text.phonemes import PhonemeSequence, read_lyrics
from mudit_engine.text.vocabulary import Vocabulary
from mudit_engine.text.wish_tables import ANY_STYLE_BPM, STYLE_BPM
from mudit_engine.text.wishes import Wishes, read_description


@dataclass(frozen=True)
class Understood:
    """A request after its text was read, before any network ran.

    Args:
        request: what was wanted.
        lyrics: its sections; None for an instrumental.
        phonemes: what is sung; None for an instrumental.
        fragments: of the description.
        wishes: what the description asks for.
        source: where length, tempo, key and chords each came from, such as "words" or "drawn".
        outline: tempo, key, chords and times of the plan.
        seconds: length of the song.
        frames: latent frames of it.
        seed: the request's, or one that was drawn.
        sampler: the model's sampler with the request's changes.
        table: of that sampler.
        notes: for the user who sent the request.
        fates: what became of every character of the lyrics.
        edit: the song that this one changes or goes on from.
        plan_seed: what the plan was drawn by: the edited song's seed, or this one's.

    Examples:
        >>> [field for field in Understood.__dataclass_fields__][:3]
        ['request', 'lyrics', 'phonemes']
    """

    request: SongRequest
    lyrics: Lyrics | None
    phonemes: PhonemeSequence | None
    fragments: tuple[str, ...]
    wishes: Wishes
    source: dict[str, str]
    outline: Outline
    seconds: float
    frames: int
    seed: int
    sampler: SamplerConfig
    table: SamplerTable
    notes: tuple[str, ...]
    fates: tuple[Fate, ...] = ()
    edit: Edit | None = None
    plan_seed: int | None = None

    @property
    def chords(self) -> str | None:
        """The chords that sound, as the user wrote them or as they were planned."""
        return self.request.chords or chord_names(self.outline.chords)

    @property
    def plan(self) -> dict[str, Any]:
        """The plan as JSON values: tempo, key, chords, melody and arrangement as they are told to
        the model.
        """
        outline = self.outline
        shown: dict[str, Any] = {"bpm": outline.bpm, "key": outline.key, "chords": self.chords}
        if len(outline.melody):
            shown["melody"] = [[start, end, pitch] for start, end, pitch in outline.melody]
        if outline.arrangement:
            shown["arrangement"] = [asdict(one) for one in outline.arrangement]
        return shown

    @property
    def read(self) -> dict[str, Any]:
        """What was understood, property by property: its value, where it came from, and the words
        of the description behind it; and the words that no table knows.
        """
        planned = {
            "seconds": self.seconds,
            "bpm": self.outline.bpm,
            "key": self.outline.key,
            "chords": self.chords,
        }
        read: dict[str, Any] = {}
        for name, value in planned.items():
            if value is not None:
                words = self.wishes.words.get(name)
                if name == "bpm" and words is None:
                    words = self.wishes.words.get("tempo")
                source = self.source[name]
                read[name] = {"value": value, "source": source}
                if source == "words" and words:
                    read[name]["words"] = words
        for name in ("style", "voice", "drums", "instruments", "without", "mood", "metre"):
            value = getattr(self.wishes, name)
            if name in CONTROLS and getattr(self.request, name) is not None:
                read[name] = {"value": getattr(self.request, name), "source": "request"}
            elif value not in (None, ()):
                read[name] = {
                    "value": list(value) if isinstance(value, tuple) else value,
                    "source": "words",
                    "words": self.wishes.words[name],
                }
        return {"properties": read, "unread": list(self.wishes.unread)}


class TextReader:
    """Reads requests as far as no network is needed, so that a machine without the model's weights
    can check and plan songs.

    Args:
        config: the model's configuration.
        check: raises InputError for what the song's runtime cannot make; None where it makes
            whatever the model does.
        fast: whether a few-step student makes the songs, whose sampler `config` has.

    Examples:
        >>> from mudit_engine.config import load_config
        >>> from mudit_engine.models.folder import model_folder
        >>> reader = TextReader(load_config(model_folder("tiny")))
        >>> reader.read(SongRequest(description="钢琴", seconds=8, seed=1)).frames
        87
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        check: Callable[[SongShape], None] | None = None,
        fast: bool = False,
    ) -> None:
        self.config, self._check, self.fast = config, check, fast

    def read(self, request: SongRequest, *, compose: bool = False) -> Understood:
        """Checks a request against the model and plans its song, without running a network.

        `compose` plans melody and arrangement even for a model that is not told them.

        Raises InputError for lyrics, chords or a length that the model cannot take and for what its
        runtime cannot make, and ConfigError for a sampler that does not fit its path.
        """
        config = self.config
        notes: list[str] = []
        edit = open_edit(request)
        if edit is not None:
            request = edit.merged(request)
            notes += self._check_edit(edit, request.seconds)
        length = request.seconds if edit is None or edit.total is None else edit.total
        lyrics = phonemes = None
        fates: tuple[Fate, ...] = ()
        if (request.lyrics or "").strip():
            read = read_lyrics(
                request.lyrics or "",
                vocabulary=Vocabulary.load(config.dit.vocabulary),
                ignore_times=request.ignore_times,
            )
            lyrics, phonemes, fates = read.lyrics, read.phonemes, read.fates
            notes += read.notes
        if length is not None and length > config.max_seconds:
            raise InputError(
                f"seconds={length:g} is longer than model '{config.name}' makes (at most "
                f"{config.max_seconds:g} s): ask for less, or use a larger model"
            )
        seed = request.seed if request.seed is not None else secrets.randbelow(2**31)
        said = read_description(request.description)
        controls = Controls(request.drums, request.voice, request.style)
        wishes, against = controlled(said, controls)
        notes += [*said.notes, *against, *_sung_or_not(wishes, sung=phonemes is not None)]
        wishes, nearest = _in_known_style(wishes, controls=config.dit.controls)
        notes += nearest
        composed = config.dit.melody or config.dit.arrangement or compose
        melody = _given_melody(request)  # a file that cannot be read is refused by every model
        planned_by = seed if edit is None or edit.plan_seed is None else edit.plan_seed
        outlined = config.dit.outline and request.planned
        heard = HeardPart()
        in_vain: list[str] = []
        if outlined and request.reference is not None and edit is None:
            heard, in_vain = _heard_in(request, wishes, melody)
        plan_with = partial(
            plan_song,
            wishes,
            longest=config.max_seconds,
            outlined=outlined,
            bpm=request.bpm or heard.bpm,
            key=request.key or heard.key,
            chords=request.chords or heard.chords,
            composed=composed and outlined,
            controls=_all_controls(wishes),
        )
        plan = plan_with(
            phonemes,
            seed=planned_by,
            seconds=length if edit is None or edit.extend is None else edit.seconds,
            melody=melody if config.dit.melody or compose else None,
        )
        if edit is not None and edit.extend is not None and length is not None:
            kept = edit.kept_seconds(plan.outline.bpm)
            # what is added is played: its sections and tunes are drawn by a seed of their own
            tail = plan_with(None, seed=planned_by + 1, seconds=length - kept)
            plan = went_on(plan, tail, kept=kept, seconds=length)
        plan = _from_reference(plan, heard, request.reference_kind)
        notes += [*plan.notes, *in_vain]
        fragments = self._fragments(request, controls, said, wishes)
        asked = ("bpm", "key", "chords", "melody", "melody_file")
        planned = [name for name in asked if getattr(request, name) is not None]
        if config.dit.outline and not config.dit.melody and {"melody", "melody_file"} & {*planned}:
            notes.append(
                f"model '{config.name}' follows no melody: the one that was given changes nothing "
                "that is heard"
            )
        if planned and not config.dit.outline:
            notes.append(
                f"model '{config.name}' takes no outline: {' and '.join(planned)} are not "
                "followed, only what the description says"
            )
        if edit is not None and edit.total is None:
            _check_goes_on(edit, plan.seconds)
        sampler = self._sampler(request.sampler)
        notes += _idle_options(request, sampler)
        if self.fast:
            notes += _other_steps(sampler, self.config.sampler)
        understood = Understood(
            request=request,
            lyrics=lyrics,
            phonemes=phonemes,
            fragments=fragments,
            wishes=wishes,
            source=plan.source,
            outline=plan.outline,
            seconds=plan.seconds,
            frames=max(1, math.ceil(plan.seconds * config.vae.frame_rate)),
            seed=seed,
            sampler=sampler,
            table=sampler_table(config.path, sampler),
            fates=fates,
            notes=tuple(notes),
            edit=edit,
            plan_seed=planned_by,
        )
        if self._check is not None:
            self._check(self._shape(understood))
        return understood

    def _shape(self, understood: Understood) -> SongShape:
        """What the song's runtime is asked for."""
        rate, reference = self.config.vae.frame_rate, 0
        if understood.request.reference is not None:
            heard = math.ceil(audio_seconds(Path(understood.request.reference)) * rate)
            reference = min(understood.frames, heard)
        return SongShape(
            frames=understood.frames,
            tokens=len(understood.phonemes.ids) if understood.phonemes else 0,
            reference=reference,
            rows=len(understood.table.times),
            edited=understood.edit is not None,
        )

    def _check_edit(self, edit: Edit, seconds: float | None) -> list[str]:
        """Notes on an edited song. Raises InputError for a model that was not trained on edits."""
        if not self.config.dit.edits:
            raise InputError(
                f"model '{self.config.name}' was not trained on edits (dit.edits): take one that "
                "was, such as tiny"
            )
        if seconds is not None and edit.total not in (None, seconds):
            raise InputError(
                f"seconds={seconds:g} is given, and the edited song is {edit.total:g} s long: "
                "leave seconds out"
            )
        if edit.info is None:
            return [
                f"nothing is known of '{edit.audio.name}' but its sound: tempo, key and lyrics are "
                "those of this request"
            ]
        return []

    def _fragments(
        self, request: SongRequest, controls: Controls, said: Wishes, wishes: Wishes
    ) -> tuple[str, ...]:
        """What the text encoder hears.

        A model that takes controls hears what was read of them in the words that it was trained on,
        and then the description's sentences, which may be worded as nothing that it was trained on.
        Where nothing was read, and of a professional, whose terms are those of the training, it
        hears the description's fragments. A model without controls hears those, and the typed ones
        in words, which stand last and are never the ones that are left out.
        """
        most, description = self.config.dit.max_fragments, request.description
        if self.config.dit.controls and request.user_type != "professional":
            told = told_words(_all_controls(wishes))
            if told:
                return (*told, *sentences(description))[:most]
        extra: tuple[str, ...] = ()
        if not self.config.dit.controls:
            chinese = any(map(is_han, description)) or not description.strip()
            extra = words_of(controls, said, chinese=chinese)
        own: tuple[str, ...] = ()
        if description.strip():
            own = description_fragments(description, max(1, most - len(extra)))
        return (*own, *extra)[:most]

    def check_reference(self, path: str | Path) -> None:
        """Raises InputError for a reference that is missing or cannot be decoded."""
        load_audio(path)

    def understand(self, request: SongRequest, *, compose: bool = False) -> Understood:
        """`read`, and the reference and the edited song are looked at as well."""
        understood = self.read(request, compose=compose)
        if request.reference is not None:
            self.check_reference(request.reference)
        if understood.edit is not None and understood.edit.latents is None:
            self.check_reference(understood.edit.audio)
        return understood

    def _sampler(self, changes: Mapping[str, Any]) -> SamplerConfig:
        """The model's sampler with a request's changes, validated as a whole."""
        sampler = parse_config(
            SamplerConfig, {**self.config.sampler.model_dump(), **changes}, source="sampler"
        )
        try:
            check_sampler(self.config.path, sampler)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return sampler


class RequestReader(TextReader):
    """Reads requests for one model, so that a request means the same song everywhere.

    Args:
        config: the model's configuration.
        vae: encodes reference audio; its device is where that runs.
        text: what reads descriptions: ChinMu, or a runtime that stands in for it.
        check: as in TextReader.
        fast: as in TextReader.

    Examples:
        >>> from mudit_engine.runtime.load import open_model
        >>> opened = open_model("tiny", dtype=torch.float32)
        >>> reader = RequestReader(opened.config, opened.vae, text=opened.text)
        >>> understood = reader.read(SongRequest(description="钢琴，C 大调", seconds=8, seed=1))
        >>> understood.outline.key, understood.frames
        ('C major', 87)
    """

    def __init__(
        self,
        config: ModelConfig,
        vae: SpectralVAE,
        *,
        text: TextEncoder,
        check: Callable[[SongShape], None] | None = None,
        fast: bool = False,
    ) -> None:
        super().__init__(config, check=check, fast=fast)
        self.vae, self.text = vae, text

    @torch.inference_mode()
    def inputs(self, understood: Understood) -> SongInputs:
        """What the denoiser needs of the song: description vectors, tokens, plan and reference.

        Raises InputError when the reference cannot be read.
        """
        request = understood.request
        negative: tuple[str, ...] = ()
        if request.negative.strip():
            negative = description_fragments(request.negative, self.config.dit.max_fragments)
        reference = None
        if request.reference is not None:
            reference = self.encode_reference(request.reference, max_frames=understood.frames)
        phonemes = understood.phonemes
        rows = outline_rows(
            understood.outline,
            frames=understood.frames,
            frame_rate=self.config.vae.frame_rate,
            tokens=len(phonemes) if phonemes else 0,
            config=self.config.dit,
        )
        return SongInputs(
            frames=understood.frames,
            seconds=understood.seconds,
            table=understood.table,
            seed=understood.seed,
            descriptions=self.text.encode_text(understood.fragments),
            negative=self.text.encode_text(negative),
            lyric_ids=phonemes.ids if phonemes else (),
            user_type=request.user_type,
            reference=reference,
            reference_kind=request.reference_kind,
            outline=rows,
            texts=understood.fragments,
            negative_texts=negative,
            given=self._given(understood),
        )

    def _given(self, understood: Understood) -> tuple[Tensor, Tensor] | None:
        """The latents of an edited song, and which of its frames stay."""
        edit = understood.edit
        if edit is None:
            return None
        frames, rate = understood.frames, self.config.vae.frame_rate
        held_T = torch.from_numpy(edit.held(frames, rate, bpm=understood.outline.bpm))
        found_TC = None
        if edit.latents is not None:
            found_TC = load_latents(edit.latents, self.config.vae)
        if found_TC is None:
            found_TC = self.encode_reference(edit.audio, max_frames=frames, level=edit.level)
            found_TC = found_TC.float().cpu()
        given_TC = torch.zeros(frames, self.config.vae.latent_channels)
        known = min(frames, len(found_TC))
        given_TC[:known] = found_TC[:known]
        held_T[known:] = False
        return given_TC, held_T

    @torch.inference_mode()
    def encode_reference(self, path: str | Path, *, max_frames: int, level: float = 1.0) -> Tensor:
        """Normalised latents [frames, C] of an audio file, at most as long as the song; its samples
        are multiplied by `level`.

        Raises InputError for a file that is missing or cannot be decoded.
        """
        c = self.config.vae
        audio, rate = load_audio(path)
        audio = to_channels(resample(audio, rate, c.sample_rate), c.channels)
        audio = audio[:, : max_frames * c.hop] * level
        mean, _ = self.vae.encode(audio[None].to(self.vae.latent_mean.device))
        return self.vae.normalise(mean)[0, :max_frames]


def _check_goes_on(edit: Edit, seconds: float) -> None:
    """Raises InputError for a song that would not be longer than the one that it goes on from."""
    if seconds <= edit.seconds + 0.5:
        raise InputError(
            f"the song would be {seconds:g} s long and '{edit.audio.name}' is {edit.seconds:g} s "
            "already: ask for more seconds, or say what changes with repaint or extend"
        )


def _heard_in(
    request: SongRequest, wishes: Wishes, melody: GivenMelody | None
) -> tuple[HeardPart, list[str]]:
    """(what the reference decides of the plan and nobody asked for otherwise: the beat of drums,
    bass or chords, and the chords of the last two; a note on what was listened for in vain).

    A key or a melody that was asked for needs chords of its own, and a tempo its own bars.
    """
    assert request.reference is not None
    kind = request.reference_kind
    if request.bpm is not None or wishes.bpm is not None or (melody and melody.bpm):
        return HeardPart(), []
    at_home = STYLE_BPM.get(wishes.style or "", ANY_STYLE_BPM)
    heard = hear_file(request.reference, kind, at_home=at_home)
    if kind in BEAT_IN and heard.bpm is None:
        return heard, [
            f"no beat is heard in the reference ({kind}), so that it decides no tempo: name one "
            "(--bpm) if you know it"
        ]
    if request.key or request.chords or wishes.key or melody is not None:
        return HeardPart(heard.bpm), []
    if kind in CHORDS_IN and heard.chords is None:
        return heard, [
            f"no chords are heard in the reference ({kind}): they are planned; name them "
            "(--chords) if you know them"
        ]
    return heard, []


def _from_reference(plan: SongPlan, heard: HeardPart, kind: str) -> SongPlan:
    """The plan with the sources of what was heard, and a note on it."""
    found = {name: value for name in ("bpm", "key", "chords") if (value := getattr(heard, name))}
    if not found:
        return plan
    said = {"bpm": f"{heard.bpm:g} beats a minute" if heard.bpm else ""}
    said |= {name: f"{name} {value}" for name, value in found.items() if name != "bpm"}
    note = (
        f"heard in the reference ({kind}): {'; '.join(said.values())}. It is taken to begin with a "
        "bar; name a tempo, a key or chords to have your own"
    )
    source = plan.source | dict.fromkeys(found, "reference")
    return replace(plan, source=source, notes=(*plan.notes, note))


def _sung_or_not(wishes: Wishes, *, sung: bool) -> list[str]:
    """Notes on a voice without lyrics, and on lyrics without a voice."""
    asked = wishes.words.get("voice", f"voice {wishes.voice}")  # typed ones have no words
    if sung and wishes.voice == "none":
        return [
            f"'{asked}' asks for no voice, but there are lyrics: they are sung. "
            "Leave out the lyrics for an instrumental"
        ]
    if not sung and wishes.voice not in (None, "none"):
        return [f"'{asked}' asks for a voice, but there are no lyrics to sing"]
    return []


def _in_known_style(wishes: Wishes, *, controls: bool) -> tuple[Wishes, list[str]]:
    """The wishes with a style that the model was trained on, and a note where it is another."""
    style = known_style(wishes.style, controls=controls)
    if style == wishes.style:
        return wishes, []
    named = wishes.words.get("style", wishes.style)
    return replace(wishes, style=style), [
        f"'{named}' is no style of this model: it is planned as {style}, the nearest"
    ]


def _all_controls(wishes: Wishes) -> Controls:
    """What words and controls together say, as the model's own inputs."""
    return Controls(wishes.drums, wishes.voice, wishes.style)


def _given_melody(request: SongRequest) -> GivenMelody | None:
    if request.melody is not None:
        return parse_melody(request.melody)
    return None if request.melody_file is None else read_melody_file(request.melody_file)


def _other_steps(sampler: SamplerConfig, trained: SamplerConfig) -> list[str]:
    """A note where a few-step student is sampled otherwise than it was trained for."""
    told, known = sampler.model_dump(), trained.model_dump()
    changed = [f"{name} {told[name]}" for name in told if told[name] != known[name]]
    if not changed:
        return []
    return [
        f"the few-step student was trained for {steps_of(trained)}: with {', '.join(changed)} it "
        "does what nobody taught it"
    ]


def _idle_options(request: SongRequest, sampler: SamplerConfig) -> list[str]:
    """Notes on options that were set and change nothing."""
    notes = []
    if request.negative.strip() and sampler.guidance == 1:
        notes.append(
            "the negative description has no effect at guidance 1: it is what guidance leads away "
            "from. Take a guidance above 1"
        )
    if request.sampler.get("eta") and sampler.name != "ddim":
        notes.append(f"eta has no effect with sampler '{sampler.name}': only ddim has it")
    if "guidance_interval" in request.sampler and sampler.guidance == 1:
        notes.append("guidance_interval has no effect at guidance 1")
    if request.reference_kind != "mix" and request.reference is None:
        notes.append(f"reference_kind '{request.reference_kind}' has no effect without a reference")
    return notes
