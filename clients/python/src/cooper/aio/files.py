"""Files of a session: paths are relative to its workspace, and none leads out of it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Iterator, List, Optional, Union

import grpc

from cooper import results
from cooper.aio._channel import Channel
from cooper.errors import from_rpc
from cooper.results import FileInfo, Match
from cooper.v1 import sessions_pb2, sessions_pb2_grpc

#: Of one message.
PIECE_BYTES = 64 << 10


class Files:
    def __init__(self, channel: Channel, session_id: str) -> None:
        self._channel = channel
        self._stub = sessions_pb2_grpc.SessionsStub(channel.grpc)
        self._session = session_id

    async def read(self, path: str, offset: int = 0, length: int = 0) -> bytes:
        """The whole of it, or `length` bytes from `offset` on."""
        data = bytearray()
        await self._receive(path, data.extend, offset, length)
        return bytes(data)

    async def read_text(self, path: str) -> str:
        return (await self.read(path)).decode()

    async def download(self, path: str, to: Union[str, Path]) -> FileInfo:
        """Into a file here, of any size."""
        with open(to, "wb") as target:
            return await self._receive(path, target.write)

    async def _receive(self, path: str, take: Any, offset: int = 0, length: int = 0) -> FileInfo:
        request = sessions_pb2.ReadFileRequest(
            session_id=self._session, path=path, offset_bytes=offset, length_bytes=length
        )
        stat: Any = None
        try:
            async for message in self._channel.stream(self._stub.ReadFile, request):
                if message.HasField("stat"):
                    stat = message.stat
                else:
                    take(message.data)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        return results.file(stat)

    async def write(
        self,
        path: str,
        data: Union[bytes, str],
        mode: int = 0,
        create_dirs: bool = True,
        if_match: str = "",
    ) -> FileInfo:
        """Atomically. `if_match`: the etag or sha256 that the file has to have now; "none": it must not be there."""
        content = data.encode() if isinstance(data, str) else data
        pieces = (content[at : at + PIECE_BYTES] for at in range(0, len(content), PIECE_BYTES))
        return await self._send(path, pieces, mode, create_dirs, if_match)

    async def upload(self, source: Union[str, Path], path: Optional[str] = None, create_dirs: bool = True) -> FileInfo:
        """A file from here, of any size; by its own name unless told otherwise."""
        source = Path(source)
        with open(source, "rb") as file:
            pieces = iter(lambda: file.read(PIECE_BYTES), b"")
            return await self._send(path or source.name, pieces, source.stat().st_mode & 0o777, create_dirs, "")

    async def _send(
        self, path: str, pieces: Iterator[bytes], mode: int, create_dirs: bool, if_match: str
    ) -> FileInfo:
        header = sessions_pb2.WriteFileHeader(
            session_id=self._session,
            path=path,
            mode=mode,
            create_dirs=create_dirs,
            idempotency_key=f"py-{uuid.uuid4().hex}",
            if_match=if_match,
        )

        def messages() -> Iterator[Any]:
            yield sessions_pb2.WriteFileRequest(header=header)
            for piece in pieces:
                yield sessions_pb2.WriteFileRequest(data=piece)

        answer = await self._channel.send(self._stub.WriteFile, messages())
        return results.file(answer.stat)

    async def list(
        self, path: str = "", glob: str = "", recursive: bool = False, hidden: bool = False
    ) -> List[FileInfo]:
        found: List[FileInfo] = []
        cursor = ""
        while True:
            request = sessions_pb2.ListFilesRequest(
                session_id=self._session, path=path, glob=glob, recursive=recursive, hidden=hidden, cursor=cursor
            )
            answer = await self._channel.call(self._stub.ListFiles, request)
            found.extend(results.file(each) for each in answer.files)
            cursor = answer.next_cursor
            if not cursor:
                return found

    async def stat(self, path: str, sha256: bool = False) -> FileInfo:
        request = sessions_pb2.StatFileRequest(session_id=self._session, path=path, sha256=sha256)
        return results.file(await self._channel.call(self._stub.StatFile, request))

    async def move(self, source: str, target: str, overwrite: bool = False) -> FileInfo:
        request = sessions_pb2.MoveFileRequest(
            session_id=self._session, to=target, overwrite=overwrite, create_dirs=True, **{"from": source}
        )
        return results.file(await self._channel.call(self._stub.MoveFile, request, repeat=False))

    async def copy(self, source: str, target: str, overwrite: bool = False) -> FileInfo:
        request = sessions_pb2.CopyFileRequest(
            session_id=self._session, to=target, overwrite=overwrite, create_dirs=True, **{"from": source}
        )
        return results.file((await self._channel.call(self._stub.CopyFile, request, repeat=False)).stat)

    async def delete(self, path: str, recursive: bool = False, missing_ok: bool = False) -> None:
        request = sessions_pb2.DeleteFileRequest(
            session_id=self._session, path=path, recursive=recursive, missing_ok=missing_ok
        )
        await self._channel.call(self._stub.DeleteFile, request, repeat=missing_ok)

    async def make_dir(self, path: str) -> FileInfo:
        request = sessions_pb2.MakeDirRequest(session_id=self._session, path=path)
        return results.file(await self._channel.call(self._stub.MakeDir, request))

    async def search(self, pattern: str, path: str = "", regex: bool = False, glob: str = "") -> List[Match]:
        request = sessions_pb2.SearchFilesRequest(
            session_id=self._session, path=path, pattern=pattern, regex=regex, glob=glob
        )
        answer = await self._channel.call(self._stub.SearchFiles, request)
        return [Match(each.path, each.line, each.column, each.text) for each in answer.matches]

    async def edit(self, path: str, old: str, new: str, all: bool = False) -> FileInfo:
        """Replaces a text that is there once (with `all`: however often)."""
        edit = sessions_pb2.Edit(old=old.encode(), new=new.encode(), all=all)
        request = sessions_pb2.EditFileRequest(session_id=self._session, path=path, edits=[edit])
        return results.file((await self._channel.call(self._stub.EditFile, request, repeat=False)).stat)
