"""The asynchronous client: `async with cooper.aio.Session() as session: await session.run("1 + 1")`."""

from cooper.aio.cluster import Cluster
from cooper.aio.execution import Execution
from cooper.aio.files import Files
from cooper.aio.repair import Repair
from cooper.aio.session import Session

__all__ = ["Cluster", "Execution", "Files", "Repair", "Session"]
