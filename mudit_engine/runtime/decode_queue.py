"""Songs that wait to be decoded, and whose turn is next: a piece at a time of whoever waits for the
least work, until the first sound or the end.

    decodes = DecodeQueue(decoder, config, lock)
    with lock:
        decodes.add(ticket, latents_TC)
    decodes.decode_piece()                        # by any thread, one piece of one song

A ticket gets its pieces as they are made (Ticket.give), and its end after the last one. Threads
that decode at once take different songs. The lock is the engine's own: whoever waits for it is told
when a song enters, when a decoder is free again and when a song ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from mudit_engine.config import ModelConfig
from mudit_engine.errors import StoppedError
from mudit_engine.runtime.decode import FIRST_FRAMES, LatentDecoder, pieces_of_song
from mudit_engine.runtime.ticket import Event, Stage, Ticket

Entry = tuple[Ticket, Iterator[Tensor]]
"""A song and the pieces of its audio, fp32 [channels, samples], made when they are asked for."""


class DecodeQueue:
    """Songs between their last step and the end of their audio.

    Args:
        decoder: what makes audio of latents.
        config: of the model.
        lock: of the engine, held wherever a method says so.
    """

    def __init__(
        self, decoder: LatentDecoder, config: ModelConfig, lock: threading.Condition
    ) -> None:
        self.decoder, self.config, self._lock = decoder, config, lock
        self.songs: list[Entry] = []
        self.at_decoder: set[Ticket] = set()
        self.seconds_per_frame = 0.0
        """Of decoding, lately."""
        self._heard: dict[Ticket, int] = {}  # latent frames decoded of each song

    def add(self, ticket: Ticket, latents_TC: Tensor) -> None:
        """Takes a song whose latents are done. With the lock held."""
        pieces = pieces_of_song(self.decoder, latents_TC, stream=ticket.stream)
        ticket.tell(Event(Stage.DECODING, ticket.steps, ticket.steps))
        self.songs.append((ticket, pieces))
        self._lock.notify_all()

    def forget(self, ticket: Ticket) -> None:
        """A song ended."""
        self._heard.pop(ticket, None)

    def free(self) -> list[Entry]:
        """Songs that no decoder is at now. With the lock held."""
        return [entry for entry in self.songs if entry[0] not in self.at_decoder]

    def decode_piece(self) -> None:
        """One piece of one song: of whoever waits for the least work."""
        with self._lock:
            if not (waiting := self.free()):
                return
            entry = min(waiting, key=lambda one: self.order(one[0]))
            self.at_decoder.add(entry[0])
        self.decode(entry)
        with self._lock:
            self.at_decoder.discard(entry[0])
            self._lock.notify_all()

    def decode(self, entry: Entry) -> None:
        """The next piece of a song; its end where there is none, or where it fails."""
        ticket, pieces = entry
        error: BaseException | None = None
        piece, started = None, time.perf_counter()
        try:
            if ticket.cancelled:
                raise StoppedError("the song was cancelled while it was decoded")
            with torch.inference_mode():
                piece = next(pieces, None)
        except Exception as caught:
            error = caught
        if piece is not None:
            piece = self._cut(ticket, piece)
        if piece is not None and piece.shape[1]:
            spent = (time.perf_counter() - started) / (piece.shape[1] / self.config.vae.hop)
            known = self.seconds_per_frame
            self.seconds_per_frame = 0.9 * known + 0.1 * spent if known else spent
            ticket.give(piece)
            return
        with self._lock:
            self.songs.remove(entry)
        self.forget(ticket)
        ticket.end(error)
        with self._lock:
            self._lock.notify_all()

    def order(self, ticket: Ticket) -> tuple[int, int]:
        """Frames until somebody has what they wait for: the first piece, or the rest of the
        song.
        """
        assert ticket.song is not None
        halo, heard = self.decoder.receptive_field, self._heard.get(ticket, 0)
        left = ticket.song.frames - heard
        if not heard and ticket.stream:
            left = min(left, max(FIRST_FRAMES, halo) + halo)
        return left, ticket.number

    def _cut(self, ticket: Ticket, piece: Tensor) -> Tensor:
        """The piece within the song's own length: latent frames are whole, seconds are not."""
        assert ticket.song is not None
        hop, rate = self.config.vae.hop, self.config.vae.sample_rate
        done = self._heard.get(ticket, 0)
        self._heard[ticket] = done + piece.shape[1] // hop
        return piece[:, : max(round(ticket.song.seconds * rate) - done * hop, 0)].cpu()
