"""What the HTTP service takes: a song's fields under one canonical name each, and the names that
other services gave them.

    body = GenerateBody.model_validate(canonical({"prompt": "piano", "duration": 10, "steps": 8}))
    request = body.request(reference=None)  # SongRequest(description="piano", seconds=10.0, ...)

Types are as JSON has them, nothing is converted: "10" is no number, 1.5 no seed, true no length. An
unknown field is refused with the nearest known name, as is one that is given under two names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mudit_engine.errors import InputError
from mudit_engine.loudness import TARGET_LUFS
from mudit_engine.names import LOUDEST, QUIETEST, SamplerName
from mudit_engine.request import FIELDS, HIGHEST_SEED, SongRequest

AudioFormat = Literal["wav", "flac", "mp3", "ogg"]
LONGEST_LYRICS = 20_000  # characters: six times the lyrics of the longest song
LONGEST_DESCRIPTION = 4_000

# a name that another service uses -> ours
ALIASES = {
    "prompt": "description",
    "duration": "seconds",
    "audio_duration": "seconds",
    "audio_length": "seconds",
    "negative_prompt": "negative",
    "tempo": "bpm",
    "key_scale": "key",
    "num_inference_steps": "steps",
    "inference_steps": "steps",
    "guidance_scale": "guidance",
    "cfg_scale": "guidance",
    "format": "response_format",
    "audio_format": "response_format",
    "output_format": "response_format",
}
SAMPLER_FIELDS = ("steps", "guidance", "sampler", "shift", "eta")
NULLABLE = ("loudness",)  # null is a value of theirs; of any other field it is the default
# as JSON writes them: Python would also take 1_0, nan, spaces and the digits of any script
_WHOLE = re.compile(r"-?[0-9]{1,30}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
OFF = "off"  # the same in a form, whose values are text


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SongBody(_Body):
    """One song. Give a description, lyrics, or both."""

    aliases: ClassVar[Mapping[str, str]] = ALIASES

    description: str = Field(
        "",
        max_length=LONGEST_DESCRIPTION,
        description="The song in your own words, Chinese or English.",
        examples=["流行抒情，钢琴与弦乐，女声，温暖，BPM 84"],
    )
    lyrics: str | None = Field(
        None,
        max_length=LONGEST_LYRICS,
        description="Lines under section tags such as [verse]; none is an instrumental.",
        examples=["[verse]\n月亮升起来\n照着旧窗台"],
    )
    seconds: float | None = Field(
        None, ge=1, description="Length; none is as long as the lyrics need.", examples=[12.0]
    )
    user_type: Literal["none", "amateur", "professional"] = Field(
        "none", description="Who wrote the description."
    )
    reference_kind: Literal["mix", "vocals", "drums", "chords", "bass"] = Field(
        "mix", description="What the uploaded reference holds."
    )
    negative: str = Field(
        "", max_length=LONGEST_DESCRIPTION, description="What the song should not be."
    )
    seed: int | None = Field(
        None, ge=0, le=HIGHEST_SEED, description="The same seed is the same song.", examples=[7]
    )
    bpm: float | None = Field(None, gt=0, description="Beats a minute.", examples=[84.0])
    key: str | None = Field(
        None, max_length=40, description="A tonic and a mode.", examples=["C minor"]
    )
    chords: str | None = Field(
        None, max_length=LONGEST_DESCRIPTION, description="A chord a bar.", examples=["C G Am F"]
    )
    melody: str | None = Field(
        None,
        max_length=LONGEST_DESCRIPTION,
        description="A note a syllable; | ends a line.",
        examples=["C4 D4 E4 | G4 E4"],
    )
    drums: bool | None = Field(None, description="Drums or none, whatever the words say.")
    voice: Literal["female", "male", "child", "none"] | None = Field(
        None, description="Who sings, whatever the words say."
    )
    style: str | None = Field(
        None, max_length=40, description="The style, whatever the words say.", examples=["jazz"]
    )
    planned: bool = Field(True, description="False plans nothing but the length.")
    edit: str | None = Field(
        None,
        pattern=r"^song-[0-9a-f]{24}$",
        description="Id of a finished song of yours that this one changes or goes on from.",
    )
    repaint: str | None = Field(
        None,
        max_length=200,
        description="With edit: the seconds that are made anew, several with commas.",
        examples=["30-45"],
    )
    extend: float | None = Field(
        None, ge=1, description="With edit: seconds that are added behind its end."
    )
    ignore_times: bool = Field(False, description="Drop the lyrics' LRC time stamps.")
    sampler: SamplerName | None = Field(None, description="None is the model's own.")
    steps: int | None = Field(None, ge=1, le=1000, description="Sampler steps.", examples=[8])
    guidance: float | None = Field(None, ge=0, description="How closely the words are followed.")
    shift: float | None = Field(None, gt=0, description="Time warp of continuous paths.")
    eta: float | None = Field(None, ge=0, le=1, description="Noise of ddim, 0 to 1.")
    loudness: float | None = Field(
        TARGET_LUFS,
        ge=QUIETEST,
        le=LOUDEST,
        description="LUFS of the finished song, its true peaks limited to -1 dB; null (in a form: "
        "off) leaves the level that was decoded. A WAV in the answer is streamed at that level, "
        "unless this is given.",
    )
    model: str | None = Field(
        None, max_length=200, description="The served model's name, or leave it out."
    )
    lora: str | None = Field(
        None, max_length=200, description="A loaded LoRA's name, as /v1/models lists them."
    )
    deadline: float | None = Field(
        None, gt=0, le=86400, description="Give up when the song is not ready after these seconds."
    )

    @property
    def whole(self) -> bool:
        """Whether the answer waits for the whole song: nobody knows its loudness before."""
        return "loudness" in self.model_fields_set and self.loudness is not None

    def request(self, *, reference: Path | None = None, edit: Path | None = None) -> SongRequest:
        """The request of these fields; `edit` is the sidecar of the song that `self.edit` names.
        Raises InputError.
        """
        sampler = {
            "name" if name == "sampler" else name: value
            for name in SAMPLER_FIELDS
            if (value := getattr(self, name)) is not None
        }
        own = {
            name: getattr(self, name)
            for name in FIELDS
            if name not in ("sampler", "reference", "edit") and name in type(self).model_fields
        }
        return SongRequest(**own, sampler=sampler, reference=reference, edit=edit)


class GenerateBody(SongBody):
    """One song, and the form of the answer."""

    response_format: AudioFormat = Field("wav", description="Form of the audio.")


class SpeechBody(_Body):
    """One song in the words of OpenAI's speech API: `input` are the lyrics, `instructions` describe
    the song.
    """

    aliases: ClassVar[Mapping[str, str]] = {}

    input: str = Field(
        min_length=1,
        max_length=LONGEST_LYRICS,
        description="Lyrics.",
        examples=["[verse]\n月亮升起来"],
    )
    instructions: str = Field(
        "", max_length=LONGEST_DESCRIPTION, description="The song in your own words."
    )
    model: str | None = Field(None, max_length=200, description="The served model's name.")
    voice: Literal["default", "female", "male"] = Field(
        "default", description="A voice that is added to the instructions."
    )
    response_format: AudioFormat = Field("mp3", description="Form of the audio.")
    speed: float = Field(1.0, ge=1, le=1, description="Songs have their own tempo: 1 alone.")
    stream_format: Literal["audio", "sse"] = Field(
        "audio", description="Plain audio, or events speech.audio.delta and speech.audio.done."
    )
    seconds: float | None = Field(None, ge=1, description="Length; none is as the lyrics need.")
    seed: int | None = Field(None, ge=0, le=HIGHEST_SEED)
    steps: int | None = Field(None, ge=1, le=1000)
    loudness: float | None = Field(
        TARGET_LUFS, ge=QUIETEST, le=LOUDEST, description="LUFS, as of /v1/audio/generate."
    )
    lora: str | None = Field(None, max_length=200, description="A loaded LoRA's name.")

    def song(self) -> SongBody:
        """The same in the canonical fields."""
        voice = {"default": "", "female": "女声", "male": "男声"}[self.voice]
        described = "，".join(part for part in (self.instructions, voice) if part)
        given = "loudness" in self.model_fields_set
        level: dict[str, Any] = {"loudness": self.loudness} if given else {}
        return SongBody(
            lyrics=self.input,
            description=described,
            seconds=self.seconds,
            seed=self.seed,
            steps=self.steps,
            lora=self.lora,
            model=self.model,
            **level,
        )


def canonical(fields: Mapping[str, Any], aliases: Mapping[str, str] = ALIASES) -> dict[str, Any]:
    """Fields under our names. Raises InputError for one that is given under two names."""
    found: dict[str, Any] = {}
    under: dict[str, str] = {}
    for name, value in fields.items():
        own = aliases.get(name, name)
        if own in found:
            raise InputError(f"'{name}' and '{under[own]}' are the same field: give one of them")
        found[own], under[own] = value, name
    return found


def parse(kind: type[_Body], fields: Any) -> Any:
    """A body of its JSON. Raises InputError that names every wrong field with what is accepted."""
    if not isinstance(fields, Mapping):
        what = "empty" if fields is None else f"a {type(fields).__name__}"
        raise InputError(f'the body is {what}: send an object such as {{"description": "..."}}')
    aliases: Mapping[str, str] = getattr(kind, "aliases", {})
    own = canonical({str(name): value for name, value in fields.items()}, aliases)
    known = [*kind.model_fields, *aliases]
    for name in own:
        if name == "reference" and issubclass(kind, GenerateBody):
            raise InputError(
                "reference is a file: send it in a form (multipart/form-data), such as curl's "
                "-F reference=@song.wav"
            )
        if name not in kind.model_fields:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            raise InputError(f"unknown field '{name[:60]}': {hint}")
    # null is a field's default, as leaving it out is
    own = {name: value for name, value in own.items() if value is not None or name in NULLABLE}
    try:
        return kind.model_validate(own)
    except ValidationError as error:
        raise InputError("; ".join(_explained(one) for one in error.errors()[:5])) from None


def _explained(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    given = repr(error.get("input"))
    given = given if len(given) <= 60 else given[:57] + "..."
    return f"{where}: {error['msg']} (given: {given})"


def numbers_of_form(fields: Mapping[str, str], kind: type[_Body] = GenerateBody) -> dict[str, Any]:
    """Fields of a form, whose values are all text: those that are numbers here become numbers,
    and "true" and "false" what they say. Raises InputError for other text in their place.
    """
    aliases: Mapping[str, str] = getattr(kind, "aliases", {})
    found: dict[str, Any] = {}
    for name, text in fields.items():
        own = aliases.get(name, name)
        wanted = str(kind.model_fields[own].annotation) if own in kind.model_fields else ""
        value: Any = text
        if "bool" in wanted:
            if text not in ("true", "false"):
                raise InputError(f"{name}: '{text[:60]}' is neither true nor false")
            value = text == "true"
        elif own in NULLABLE and text == OFF:
            value = None
        elif "int" in wanted or "float" in wanted:
            whole = "int" in wanted
            if not (_WHOLE if whole else _NUMBER).fullmatch(text):
                raise InputError(f"{name}: '{text[:60]}' is no {'whole ' if whole else ''}number")
            value = int(text) if whole else float(text)
        found[name] = value
    return found
