"""The asynchronous client: the same methods, many at a time."""

import asyncio
from typing import List

import pytest

from cooper import NotFound
from cooper.aio import Cluster, Session


def test_sessions_run_side_by_side() -> None:
    async def one(cluster: Cluster, number: int) -> str:
        async with cluster.session() as session:
            await session.run(f"n = {number}")
            return (await session.run("n * n")).text

    async def all() -> List[str]:
        async with Cluster() as cluster:
            return await asyncio.gather(*(one(cluster, number) for number in range(4)))

    assert asyncio.run(all()) == ["0", "1", "4", "9"]


def test_output_streams_while_others_run() -> None:
    async def stream() -> None:
        async with Session() as session:
            execution = session.stream("for n in range(3): print(n)")
            text = "".join([output.text async for output in execution])
            assert text == "0\n1\n2\n" and (await execution.result()).ok
            waiting = session.stream("print('on', flush=True)\nimport time\ntime.sleep(600)")
            async for _ in waiting:
                await waiting.interrupt()
            result = await waiting.result()
            assert result.error is not None and result.error.name == "KeyboardInterrupt"

    asyncio.run(stream())


def test_files_and_errors() -> None:
    async def files() -> None:
        async with Session() as session:
            await session.files.write("a.txt", "text")
            assert await session.files.read_text("a.txt") == "text"
            with pytest.raises(NotFound, match="file_not_found"):
                await session.files.read("b.txt")
            assert "a.txt" in {file.path for file in await session.files.list()}

    asyncio.run(files())
