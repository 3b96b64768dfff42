"""A process that encodes rows for another one: it reads batches from a socket and answers with encoded batches.

It ends when the process that started it does, however that ends, because its socket is closed then. What it unpickles
comes from that process alone. It imports no torch unless the encoder does.
"""

from __future__ import annotations

import os
import pickle
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from reallm.data.tokenization.encoder import encode_batch
from reallm.launch.signals import leave_signals_to_parent

READY = "ready"


def main(descriptor: int) -> None:
    """Serve the process at the other end of a socket: an encoder first, then batches of rows, both pickled.

    The answers are `READY` (or None if the encoder cannot be unpickled here), then for each batch an `EncodedBatch`,
    or None if anything goes wrong: the other process then encodes the batch itself, and meets the error.
    """
    leave_signals_to_parent()
    connection = Connection(descriptor)
    requests: SimpleQueue[bytes] = SimpleQueue()
    # A thread reads ahead, so that the other process is never stuck in sending while this one is stuck in answering.
    Thread(target=_receive, args=(connection, requests), daemon=True).start()
    try:
        encoder = pickle.loads(requests.get())
    except Exception:  # code that only the other process has, or a plugin that fails in any way
        connection.send(None)
        return
    connection.send(READY)
    while True:
        connection.send_bytes(_answer(encoder, requests.get()))


def _receive(connection: Connection, requests: SimpleQueue[bytes]) -> None:
    try:
        while True:
            requests.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


def _answer(encoder: Any, request: bytes) -> bytes:
    try:
        return pickle.dumps(encode_batch(encoder, pickle.loads(request)), pickle.HIGHEST_PROTOCOL)
    except Exception:  # the other process meets the same error, and raises it
        return pickle.dumps(None)
