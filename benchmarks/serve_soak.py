"""Many streams at once through `guard serve`: every event once, in order; memory, one generation of streams after the
other; what is left.

    python benchmarks/serve_soak.py [--streams 500] [--seconds 300] [--model nano|fake]

A scripted upstream sends answers of 120 events at 20 a second, or as fast as they are taken; some clients hang up
half-way. Each answer that was read to its end must be, byte for byte, what the upstream sent. A generation is over when
as many answers have ended as there are streams; its line tells the memory at its end and the most since the one before,
so that what grows with the number of answers shows beside what is open at once. Upstream, client and guard have the
same cores: what each of them takes is told. fake: a scripted model, which leaves what the server itself holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import httpx
from common import header, median, mib
from serve_overhead import PATH, cpu_s, start

N_EVENTS, GAP_S = 120, 0.05
TEXT = (
    "the train to the coast leaves at nine from platform four and the seats by the window can be booked one day before "
    "at the desk"
)
WORDS = TEXT.split()
LEFT_BYTES = 5000  # that those who hang up read before


def events(number: int) -> list[bytes]:
    head = {"id": f"c{number}", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    out = []
    for i in range(N_EVENTS):
        delta = {"content": f"{WORDS[(number + i) % len(WORDS)]} "} if i < N_EVENTS - 1 else {}
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        out.append(f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode())
    return [*out, b"data: [DONE]\n\n"]


def upstream() -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] != "POST":  # whether it is there
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        raw, more = b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        kind = (b"content-type", b"text/event-stream")
        await send({"type": "http.response.start", "status": 200, "headers": [kind]})
        for event in events(json.loads(raw)["seed"]):
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(GAP_S)
        await send({"type": "http.response.body", "body": b""})

    return app


def guarding(behind: str, model: str) -> Any:
    from guardkit import Guard
    from guardkit.testing import FakeGuard
    from guardkit_serve import Settings, Upstream, create_app

    guard = FakeGuard({"forbidden words": "unsafe"}) if model == "fake" else Guard.load(model, timeout=60)
    return create_app(guard, Settings(upstreams=(Upstream(behind),), access_log=False, judge_s=60))


def rss(pid: int) -> float:
    """MiB in memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096 / (1 << 20)


class Clients:
    """Each asks for one answer after the other, until `end` (monotonic)."""

    def __init__(self, address: str, end: float):
        self.host, _, self.port = address.removeprefix("http://").partition(":")
        self.end = end
        self.counts = {"whole": 0, "left": 0, "wrong": 0, "failed": 0}
        self.firsts: list[float] = []  # seconds to the first byte
        self.n_bytes = 0
        self.n_open = 0
        self._numbers = iter(range(10**9))

    async def ask(self) -> None:
        while time.monotonic() < self.end:
            number = next(self._numbers)
            self.n_open += 1
            try:
                self.counts[await self._one(number)] += 1
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.counts["failed"] += 1
                print(f"{type(error).__name__}: {error}")
            finally:
                self.n_open -= 1

    async def _one(self, number: int) -> str:
        messages = [{"role": "user", "content": f"part {number}"}]
        body = json.dumps({"model": "m", "stream": True, "seed": number, "messages": messages}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\ncontent-type: application/json\r\n"
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection(self.host, int(self.port))
        try:
            writer.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise ValueError(answer.partition(b"\r\n")[0].decode())
            raw = bytearray()
            leaves = number % 7 == 3
            while piece := await reader.read(1 << 16):
                if not raw:
                    self.firsts.append(time.monotonic() - begun)
                raw += piece
                self.n_bytes += len(piece)
                if leaves and len(raw) > LEFT_BYTES:
                    break
        finally:
            writer.close()
        sent, got = b"".join(events(number)), b"".join(_chunks(bytes(raw)))
        if leaves:
            return "left" if sent.startswith(got) else "wrong"
        return "whole" if got == sent and raw.endswith(b"0\r\n\r\n") else "wrong"


def _chunks(raw: bytes) -> Iterator[bytes]:
    """Of a body in HTTP's chunks, the last of which may be cut off."""
    at = 0
    while (end := raw.find(b"\r\n", at)) >= 0 and (size := int(raw[at:end], 16)):
        yield raw[end + 2 : end + 2 + size]
        at = end + 4 + size


async def soak(address: str, pids: dict[str, int], streams: int, seconds: float) -> None:
    begun, own = time.monotonic(), time.process_time()
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    clients, pid = Clients(address, begun + seconds), pids["guard"]
    per_event = len(b"".join(events(0))) / (N_EVENTS + 1) + 6

    async def watch() -> None:
        generation, most = 0, 0.0
        print("generation  answers  open  MiB at its end  most MiB in it", flush=True)
        while time.monotonic() < clients.end:
            await asyncio.sleep(0.25)
            now = rss(pid)
            most, ended = max(most, now), sum(clients.counts.values())
            if ended >= (generation + 1) * streams:
                generation = ended // streams
                print(f"{generation:10}  {ended:7}  {clients.n_open:4}  {now:14.0f}  {most:14.0f}", flush=True)
                most = 0.0
        took = time.monotonic() - begun
        shares = {name: (cpu_s(p) - before[name]) / took for name, p in pids.items()}
        shares["client"] = (time.process_time() - own) / took
        told = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        print(f"about {clients.n_bytes / per_event / took:.0f} events/s; cores: {told}")

    print(f"with nothing open {mib(rss(pid))} MiB")
    await asyncio.gather(watch(), *(clients.ask() for _ in range(streams)))
    await asyncio.sleep(1)
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        left = (await client.get(f"{address}/metrics")).text
    first = median(clients.firsts) * 1e3
    print(f"at the end, nothing open: {mib(rss(pid))} MiB, {clients.counts}; first byte {first:.0f} ms (median)")
    print("\n".join(line for line in left.splitlines() if "open" in line and not line.startswith("#")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--model", choices=("nano", "fake"), default="nano")
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    header("guard serve under many streams", "starlette", "uvicorn", "httpx", "aiohttp", "httptools", "uvloop")
    behind, source = start(upstream)
    guarded, address = start(guarding, source, given.model)
    asyncio.run(soak(address, {"guard": guarded.pid or 0, "upstream": behind.pid or 0}, given.streams, given.seconds))
    for process in (behind, guarded):
        process.terminate()


if __name__ == "__main__":
    main()
