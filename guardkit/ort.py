"""ONNX Runtime without its telemetry: since 1.32 it would keep an id of the device and events of every model in the
user's cache, and send them to its makers. A guard tells nobody that it ran."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded

import onnxruntime as ort

if os.environ["ORT_DISABLE_TELEMETRY"] != "0":
    ort.disable_telemetry_events()  # where somebody had loaded it before

__all__ = ["ort"]
