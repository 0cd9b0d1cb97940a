"""Many sessions at once, from one thread."""

import asyncio

from cooper.aio import Cluster


async def square(cluster: Cluster, number: int) -> int:
    async with cluster.session() as session:
        return int((await session.run(f"{number} ** 2")).check().text)


async def main() -> None:
    async with Cluster() as cluster:
        print(await asyncio.gather(*(square(cluster, number) for number in range(5))))


asyncio.run(main())
