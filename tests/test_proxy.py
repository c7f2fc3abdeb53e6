"""The proxy that faults are made with must itself be beyond doubt."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.proxy import Proxy, Way, reset

PATIENCE = 10  # seconds; a fact that has not come by then will not


@asynccontextmanager
async def upstream(name: str = "") -> AsyncIterator[str]:
    """Sends its name, then back whatever comes; at the end of it says so. Yields its address."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(name.encode())
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write(b"end")
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, size: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()


@asynccontextmanager
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    host, port = proxy.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def line() -> AsyncIterator[tuple[Proxy, Client]]:
    """A proxied connection that has proved to work."""
    async with upstream() as address, Proxy([address]) as proxy, client(proxy) as peer:
        await peer.send(b"hello")
        assert await peer.receive(5) == b"hello"
        yield proxy, peer


def elapsed(since: float) -> float:
    return asyncio.get_running_loop().time() - since


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_carries_bytes_both_ways_to_the_end() -> None:
    async with line() as (proxy, peer):
        payload = bytes(range(256)) * 4096
        sending = asyncio.create_task(peer.send(payload))
        assert await peer.receive(len(payload)) == payload
        await sending
        assert proxy.connections == proxy.accepted == 1
        peer.writer.write_eof()
        assert await peer.rest() == b"end"


async def test_takes_upstreams_in_turn() -> None:
    async with upstream("a") as a, upstream("b") as b, Proxy([a, b]) as proxy:
        names = []
        for _ in range(4):
            async with client(proxy) as peer:
                names.append(await peer.receive(1))
        assert names == [b"a", b"b", b"a", b"b"]


async def test_passes_over_an_upstream_that_is_away() -> None:
    async with upstream("a") as gone:
        pass
    async with upstream("b") as here, Proxy([gone, here]) as proxy:
        for _ in range(2):
            async with client(proxy) as peer:
                assert await peer.receive(1) == b"b"


async def test_resets_a_client_when_no_upstream_answers() -> None:
    async with upstream() as gone:
        pass
    async with Proxy([gone]) as proxy, client(proxy) as peer:
        with pytest.raises(ConnectionResetError):
            await peer.rest()


async def test_cut_resets_connections_and_welcomes_new_ones() -> None:
    async with line() as (proxy, peer):
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await peer.rest()
        assert proxy.connections == 0
        async with client(proxy) as again:
            await again.send(b"x")
            assert await again.receive(1) == b"x"


@pytest.mark.parametrize("way", Way.BOTH)
async def test_a_black_hole_swallows_until_it_heals(way: Way) -> None:
    async with line() as (proxy, peer):
        proxy.blackhole(way)
        await peer.send(b"x")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await peer.reader.readexactly(1)
        proxy.heal()
        assert await peer.receive(1) == b"x"


async def test_a_black_hole_accepts_connections_and_reaches_no_upstream() -> None:
    async with upstream("a") as address, Proxy([address]) as proxy:
        proxy.blackhole()
        async with client(proxy) as peer:
            async with asyncio.timeout(PATIENCE):
                await proxy.until_accepted(1)
            assert proxy.connections == 0
            proxy.heal()
            assert await peer.receive(1) == b"a"


async def test_an_upstream_that_crashes_takes_its_clients_with_it() -> None:
    async def crash(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        reset(writer)

    server = await asyncio.start_server(crash, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, Proxy([f"{host}:{port}"]) as proxy, client(proxy) as peer:
        await peer.send(b"x")
        with pytest.raises(ConnectionResetError):
            await peer.rest()


async def test_a_black_hole_can_be_cut() -> None:
    async with line() as (proxy, peer):
        proxy.blackhole()
        async with client(proxy) as waiting:
            async with asyncio.timeout(PATIENCE):
                await proxy.until_accepted(2)
            proxy.cut()
            for victim in (peer, waiting):
                with pytest.raises(ConnectionResetError):
                    await victim.rest()


async def test_half_closed_downwards_the_client_sees_the_end_and_is_still_heard() -> None:
    async with line() as (proxy, peer):
        proxy.half_close()
        assert await peer.rest() == b""
        await peer.send(b"still there")
        assert proxy.connections == 1


async def test_half_closed_upwards_the_upstream_sees_the_end_and_still_answers() -> None:
    async with line() as (proxy, peer):
        proxy.half_close(Way.UP)
        assert await peer.rest() == b"end"


async def test_delay_holds_each_way_and_keeps_the_order() -> None:
    async with line() as (proxy, peer):
        proxy.delay(0.1)
        start = now()
        for number in range(10):
            await peer.send(bytes([number]))
        assert await peer.receive(10) == bytes(range(10))
        assert elapsed(start) >= 0.2
        # Delay is latency, not a lower rate: ten messages are not ten delays.
        assert elapsed(start) < 1.0


async def test_healing_lets_go_of_what_is_delayed() -> None:
    async with line() as (proxy, peer):
        proxy.delay(3600)
        await peer.send(b"x")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await peer.reader.readexactly(1)
        proxy.heal()
        assert await peer.receive(1) == b"x"


async def test_bandwidth_limits_the_line() -> None:
    async with line() as (proxy, peer):
        proxy.bandwidth(100_000, Way.UP)
        start = now()
        await peer.send(bytes(20_000))
        await peer.receive(20_000)
        assert elapsed(start) >= 0.2


async def test_a_slow_line_is_shared_in_turn() -> None:
    """What makes heartbeats on a connection of their own pass a backlog (F12)."""
    async with line() as (proxy, peer), client(proxy) as beating:
        proxy.bandwidth(100_000, Way.UP)
        backlog = asyncio.create_task(peer.send(bytes(1_000_000)))
        await peer.receive(5_000)
        start = now()
        await beating.send(b"beat")
        assert await beating.receive(4) == b"beat"
        assert elapsed(start) < 2
        proxy.heal()
        await peer.receive(995_000)
        await backlog
