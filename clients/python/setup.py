"""Makes what is not written by hand: the messages of the contract, and the blocking client from the asynchronous one.

Both are made into the build directory (a development install: next to the sources, where .gitignore has them).
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
CONTRACT = "cooper/v1"

# The blocking client is the asynchronous one without these words. What differs by more than words is in `_channel.py`,
# which either has of its own.
WORDS = [
    (r"\bawait ", ""),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bAsyncGenerator\[(\w+), None\]", r"Generator[\1, None, None]"),
    (r"\bAsync(Iterator|Generator)\b", r"\1"),
    (r"\b__a(iter|next|enter|exit)__\b", r"__\1__"),
    (r"\baclose\b", "close"),
    (r"\bcooper\.aio\b", "cooper.sync"),
]


def contract():
    """The proto files: of the repository, or those that a source distribution carries."""
    for place in (HERE / "proto", HERE / "../../proto"):
        if (place / CONTRACT).is_dir():
            return place.resolve()
    raise SystemExit("the contract is missing: there is neither proto/ nor ../../proto")


def make_messages(package):
    from grpc_tools import protoc

    source = contract()
    files = sorted(str(file.relative_to(source)) for file in (source / CONTRACT).glob("*.proto"))
    out = str(package.parent)
    status = protoc.main(
        ["protoc", f"-I{source}", f"--python_out={out}", f"--grpc_python_out={out}", f"--pyi_out={out}", *files]
    )
    if status != 0:
        raise SystemExit("protoc could not read the contract")
    (package / "v1" / "__init__.py").write_text('"""Messages and stubs, made from the contract."""\n')


def make_blocking(package):
    source, target = HERE / "src/cooper/aio", package / "sync"
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.py"):
        # `_channel.py` of the blocking client is written by hand.
        if file.name == "_channel.py":
            shutil.copy(HERE / "src/cooper/_blocking_channel.py", target / file.name)
            continue
        text = file.read_text()
        for word, replacement in WORDS:
            text = re.sub(word, replacement, text)
        (target / file.name).write_text(f"# Made from cooper/aio/{file.name} by setup.py.\n{text}")


class Build(build_py):
    def run(self):
        super().run()
        package = HERE / "src/cooper" if self.editable_mode else Path(self.build_lib) / "cooper"
        make_messages(package)
        make_blocking(package)


class Sources(sdist):
    """A source distribution brings the contract along."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        shutil.copytree(contract() / CONTRACT, Path(base_dir) / "proto" / CONTRACT, dirs_exist_ok=True)


setup(cmdclass={"build_py": Build, "sdist": Sources})
