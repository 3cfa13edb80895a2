"""Uploaded audio is decoded in a process of its own, with limits on time, memory and length.

    await decode_upload(given, folder / "reference.wav", limits=UploadLimits())  # raises InputError
    python -m mudit_engine.serving.uploads IN OUT SECONDS RATE CHANNELS  # what that process runs

Whatever a file does to a decoder it does to that process: a bomb that claims hours of silence, a
header that lies, a crash. What comes out is plain PCM of at most the length that was allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from mudit_engine.errors import InputError

BLOCK = 1 << 16  # samples decoded at once
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")


@dataclass(frozen=True)
class UploadLimits:
    """What an upload may be: bytes as they come, seconds, samples a second and channels decoded;
    seconds of work and bytes of memory for the decoder.
    """

    bytes: int = 32 << 20
    seconds: float = 600.0
    rate: int = 192_000
    channels: int = 8
    work: float = 20.0
    memory: int = 1 << 30


async def decode_upload(given: Path, to: Path, *, limits: UploadLimits) -> None:
    """Writes the audio of an uploaded file as WAV, cut to the allowed length. Raises InputError
    for what is no audio or takes too much.
    """
    arguments = (str(given), str(to), limits.seconds, limits.rate, limits.channels)
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mudit_engine.serving.uploads",
        *map(str, arguments),
        str(limits.memory),
        str(int(limits.work) + 1),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, complaint = await asyncio.wait_for(worker.communicate(), limits.work)
    except (TimeoutError, asyncio.CancelledError) as error:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()
        if isinstance(error, asyncio.CancelledError):
            raise
        raise InputError(
            f"the reference takes longer than {limits.work:g} s to decode: send a shorter file"
        ) from None
    if worker.returncode != 0:
        lines = complaint.decode(errors="replace").strip().splitlines()
        told = lines[-1][:200].rstrip(".") if lines and worker.returncode == 2 else ""
        reason = told or "the decoder failed on it"
        raise InputError(f"the reference cannot be decoded: {reason}. Send WAV, FLAC, MP3 or OGG")


def main(arguments: list[str]) -> int:
    """Decodes one file. Ends with 2 and a reason on stderr for what is refused."""
    given, to = arguments[:2]
    seconds, rate, channels, memory, work = (float(value) for value in arguments[2:])
    _limit(int(memory), int(work))
    import numpy as np
    import soundfile

    try:
        with soundfile.SoundFile(given) as source:
            if not 1 <= source.channels <= channels or not 1000 <= source.samplerate <= rate:
                message = f"{source.channels} channels at {source.samplerate} Hz are not accepted"
                print(message, file=sys.stderr)
                return 2
            most = int(seconds * source.samplerate)
            done = 0
            with soundfile.SoundFile(
                to, "w", source.samplerate, source.channels, subtype="PCM_16", format="WAV"
            ) as out:
                while done < most:
                    block = source.read(min(BLOCK, most - done), dtype="float32", always_2d=True)
                    if not len(block):
                        break
                    if not np.isfinite(block).all():
                        print("it holds NaN or infinite samples", file=sys.stderr)
                        return 2
                    out.write(np.clip(block, -1, 1))
                    done += len(block)
        if not done:
            print("it holds no samples", file=sys.stderr)
            return 2
    except (soundfile.LibsndfileError, RuntimeError, ValueError, OSError) as error:
        print(
            str(getattr(error, "error_string", error)).replace(given, "the file"), file=sys.stderr
        )
        return 2
    return 0


def _limit(memory: int, work: int) -> None:
    """The process's own limits, where the system has them."""
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (work, work))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
