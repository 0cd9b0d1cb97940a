//! Tests of zip and tar.gz: what others make is read, what is made here others read, and what hostile hands make is refused.

use std::{
    fs as stdfs,
    io::Cursor,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    process::Command,
};

use proptest::prelude::*;

use super::*;

const WIDE: Bounds = Bounds { entries: 10_000, bytes: 64 << 20 };

fn opened(dir: &Path) -> OwnedFd {
    stdfs::File::open(dir).unwrap().into()
}

fn zipped(dir: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    pack(&opened(dir), &mut zip::Writer::new(&mut out), WIDE, |_, _| true).unwrap();
    out
}

fn gzipped(dir: &Path) -> Vec<u8> {
    let mut out = tar::Writer::new(gzip::packer(Vec::new()));
    pack(&opened(dir), &mut out, WIDE, |_, _| true).unwrap();
    out.into_inner().finish().unwrap()
}

fn unzip(dir: &Path, bytes: &[u8], bounds: Bounds) -> Result<Summary> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    unpack_plain(&opened(dir), &mut zip::Reader::new(file)?, bounds)
}

fn gunzip(dir: &Path, bytes: &[u8], bounds: Bounds) -> Result<Summary> {
    let mut from = tar::Reader::new(gzip::Unpacker::new(Cursor::new(bytes)));
    let done = unpack_plain(&opened(dir), &mut from, bounds)?;
    from.into_inner().finish().map_err(|error| failed(b"", error))?;
    Ok(done)
}

/// What a Python program writes to `out`, a binary stream.
fn python(code: &str) -> Vec<u8> {
    let code = format!(
        "import io, os, stat, struct, sys, zipfile\nout = io.BytesIO()\n{code}\nsys.stdout.buffer.write(out.getvalue())"
    );
    let made = Command::new("python3").args(["-c", &code]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

/// A zip with entries that are added by `add(name, content, mode, method)`.
fn zip_of(code: &str) -> Vec<u8> {
    python(&format!(
        "z = zipfile.ZipFile(out, 'w')
def add(name, content=b'', mode=0o100644, method=8, system=3):
    it = zipfile.ZipInfo(name); it.external_attr = mode << 16; it.create_system = system; it.compress_type = method
    z.writestr(it, content)
{code}
z.close()"
    ))
}

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    stdfs::create_dir_all(at("d/inner")).unwrap();
    stdfs::create_dir(at("empty")).unwrap();
    stdfs::write(at("d/large"), vec![7; 3 << 20]).unwrap();
    stdfs::write(at("d/inner/nothing"), "").unwrap();
    stdfs::write(at("run ü.sh"), "#!/bin/sh\n").unwrap();
    stdfs::set_permissions(at("run ü.sh"), stdfs::Permissions::from_mode(0o751)).unwrap();
    symlink("d/inner", at("link")).unwrap();
    symlink("/nowhere", at("dangling")).unwrap();
    stdfs::hard_link(at("run ü.sh"), at("again")).unwrap();
    dir
}

/// Paths with their mode, time in seconds, and content or target.
fn picture(dir: &Path) -> Vec<(String, u32, i64, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in stdfs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let content = match () {
            () if meta.is_symlink() => stdfs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
            () if meta.is_dir() => {
                let below = picture(&path).into_iter();
                found.extend(below.map(|(path, mode, at, it)| (format!("{name}/{path}"), mode, at, it)));
                Vec::new()
            }
            () => stdfs::read(&path).unwrap(),
        };
        found.push((name, meta.mode(), meta.mtime(), content));
    }
    found.sort();
    found
}

#[test]
fn a_tree_comes_back_as_it_was_from_either_format() {
    let from = tree();
    let to = tempfile::tempdir().unwrap();
    let zip = zipped(from.path());
    let done = unzip(to.path(), &zip, WIDE).unwrap();
    assert_eq!((done.files, done.directories, done.symlinks, done.hard_links), (4, 3, 2, 0));
    assert_eq!(picture(to.path()), picture(from.path()));
    assert!(zip.len() < 20_000, "{}: it is packed", zip.len());
    // Once more over itself: what is there is replaced.
    unzip(to.path(), &zip, WIDE).unwrap();
    let to = tempfile::tempdir().unwrap();
    let done = gunzip(to.path(), &gzipped(from.path()), WIDE).unwrap();
    assert_eq!((done.files, done.directories, done.symlinks, done.hard_links), (3, 3, 2, 1));
    assert_eq!(picture(to.path()), picture(from.path()));
}

#[test]
fn others_read_what_is_packed() {
    let from = tree();
    let work = tempfile::tempdir().unwrap();
    stdfs::write(work.path().join("a.zip"), zipped(from.path())).unwrap();
    stdfs::write(work.path().join("a.tgz"), gzipped(from.path())).unwrap();
    let code = "import zipfile, stat
z = zipfile.ZipFile('a.zip'); assert z.testzip() is None
modes = {it.filename: oct(it.external_attr >> 16) for it in z.infolist()}
assert modes['run ü.sh'] == '0o100751' and modes['link'] == '0o120777' and modes['d/'].startswith('0o40'), modes
assert z.read('link') == b'd/inner' and z.read('d/large') == bytes([7]) * (3 << 20) and z.read('again') == z.read('run ü.sh')";
    let runs = |program: &str, args: &[&str]| {
        Command::new(program).args(args).current_dir(work.path()).status().unwrap().success()
    };
    assert!(runs("python3", &["-c", code]));
    assert!(runs("tar", &["xzf", "a.tgz", "d/large"]));
    assert_eq!(stdfs::metadata(work.path().join("d/large")).unwrap().len(), 3 << 20);
}

#[test]
fn what_others_pack_is_read() {
    let zip = zip_of(
        "add('f', b'stored', method=0)
add('deep/er/f', b'deflated' * 1000, 0o100755)
add('d/', b'', 0o40750)
add('l', b'deep', 0o120777)
add('dos', b'x', 0, system=0)
add('pipe', b'', 0o10644)
add('twice', b'first'); add('twice', b'second')
it = zipfile.ZipInfo('wide'); it.external_attr = 0o100600 << 16
with z.open(it, 'w', force_zip64=True) as f: f.write(b'64 bits')
z.comment = b'PK\\5\\6 is no end' + b'.' * 40",
    );
    for prefix in [&b""[..], b"#!/bin/sh\nexit 1\n"] {
        let to = tempfile::tempdir().unwrap();
        let done = unzip(to.path(), &[prefix, &zip].concat(), WIDE).unwrap();
        let read = |path: &str| stdfs::read(to.path().join(path)).unwrap();
        let mode = |path: &str| stdfs::metadata(to.path().join(path)).unwrap().mode() & 0o7777;
        assert_eq!(
            (read("f"), read("wide"), read("twice")),
            (b"stored".into(), b"64 bits".into(), b"second".into())
        );
        assert_eq!(read("deep/er/f"), b"deflated".repeat(1000));
        assert_eq!((mode("deep/er/f"), mode("d"), mode("dos"), mode("wide")), (0o755, 0o750, 0o644, 0o600));
        assert_eq!(stdfs::read_link(to.path().join("l")).unwrap(), Path::new("deep"));
        assert_eq!(done.skipped, ["pipe"]);
    }
    // Without a file that could be sought in: sizes come behind the content.
    let streamed = python(
        "class Pipe:
    def write(self, data): return out.write(data)
    def flush(self): pass
z = zipfile.ZipFile(Pipe(), 'w', zipfile.ZIP_DEFLATED); z.writestr('f', b'content'); z.close()",
    );
    let to = tempfile::tempdir().unwrap();
    unzip(to.path(), &streamed, WIDE).unwrap();
    assert_eq!(stdfs::read(to.path().join("f")).unwrap(), b"content");
    assert_eq!(unzip(to.path(), &zip_of(""), WIDE).unwrap(), Summary::default());
}

#[test]
fn more_than_65535_entries_are_counted_with_64_bits() {
    let stat = fs::stat("Cargo.toml").unwrap();
    let mut out = zip::Writer::new(Vec::new());
    for n in 0..66_000 {
        out.file(n.to_string().as_bytes(), &stat, 0, &mut io::empty()).unwrap();
    }
    out.finish().unwrap();
    let zip = out.into_inner();
    let work = tempfile::tempdir().unwrap();
    stdfs::write(work.path().join("a.zip"), &zip).unwrap();
    let code = "import zipfile; assert len(zipfile.ZipFile('a.zip').namelist()) == 66000";
    assert!(Command::new("python3").args(["-c", code]).current_dir(work.path()).status().unwrap().success());
    let mut from = zip::Reader::new(stdfs::File::open(work.path().join("a.zip")).unwrap()).unwrap();
    let mut seen = 0;
    while from.next().unwrap().is_some() {
        seen += 1;
    }
    assert_eq!(seen, 66_000);
    let to = tempfile::tempdir().unwrap();
    assert_eq!(unzip(to.path(), &zip, Bounds { entries: 9, ..WIDE }).unwrap_err().code, Code::TooLarge);
}

#[test]
fn a_hostile_zip_is_refused_and_puts_nothing_beside_its_root() {
    use Code::{InvalidArgument, PathEscapes, TooLarge};
    let patched = |make: &str, patch: &str| {
        zip_of(&format!(
            "{make}\nz.close()\nraw = bytearray(out.getvalue())\ncd = raw.rfind(b'PK\\x01\\x02')\n{patch}\nout = io.BytesIO(raw)"
        ))
    };
    let cases = [
        ("upwards", zip_of("add('../evil', b'x')"), PathEscapes),
        ("upwards inside", zip_of("add('a/../../evil', b'x')"), PathEscapes),
        ("absolute", zip_of("add('/tmp/cooper-evil', b'x')"), PathEscapes),
        ("through a link", zip_of("add('l', b'..', 0o120777); add('l/evil', b'x')"), PathEscapes),
        ("through a link to a dir", zip_of("add('l', b'..', 0o120777); add('l/')"), PathEscapes),
        ("a long link", zip_of("add('l', b'x' * 5000, 0o120777)"), InvalidArgument),
        ("a bomb", zip_of("add('f', bytes(65 << 20))"), TooLarge),
        ("many bombs", zip_of("[add(f'f{n}', bytes(8 << 20)) for n in range(9)]"), TooLarge),
        (
            "huge as it says",
            patched("add('f', b'x')", "raw[cd+24:cd+28] = b'\\xfe\\xff\\xff\\xff'"),
            TooLarge,
        ),
        (
            "larger than it says",
            patched("add('f', bytes(9 << 20))", "raw[cd+24:cd+28] = struct.pack('<I', 9)"),
            InvalidArgument,
        ),
        (
            "smaller than it says",
            patched("add('f', b'x')", "raw[cd+24:cd+28] = struct.pack('<I', 9)"),
            InvalidArgument,
        ),
        (
            "two sizes of what is not packed",
            patched("add('f', b'x', method=0)", "raw[cd+24:cd+28] = struct.pack('<I', 2)"),
            InvalidArgument,
        ),
        ("another sum", patched("add('f', b'x')", "raw[cd+16] ^= 1"), InvalidArgument),
        ("encrypted", patched("add('f', b'x')", "raw[cd+8] |= 1"), InvalidArgument),
        ("an unknown method", patched("add('f', b'x')", "raw[cd+10] = 99"), InvalidArgument),
        ("an entry that is elsewhere", patched("add('f', b'x')", "raw[cd+42] = 9"), InvalidArgument),
        (
            "an entry beyond the end",
            patched("add('f', b'x')", "raw[cd+42:cd+46] = b'\\xfe\\xff\\xff\\xff'"),
            InvalidArgument,
        ),
        (
            "packed beyond the end",
            patched("add('f', b'x')", "raw[cd+20:cd+24] = b'\\xfe\\xff\\xff\\xff'"),
            InvalidArgument,
        ),
        (
            "a directory beyond the end",
            patched("add('f', b'x')", "raw[-10:-6] = b'\\xfe\\xff\\xff\\xff'"),
            InvalidArgument,
        ),
        ("one of several parts", patched("add('f', b'x')", "raw[-18:-16] = b'\\1\\0'"), InvalidArgument),
        // One body under a thousand names.
        (
            "entries that overlap",
            patched(
                "add('f', bytes(1 << 20))",
                "head, end = raw[cd:-22], raw[-22:]
raw = raw[:cd] + b''.join(head[:46] + b'%c' % (65 + n) + head[47:] for n in range(50))
raw += end[:8] + struct.pack('<HHIIH', 50, 50, len(head) * 50, cd, 0)",
            ),
            InvalidArgument,
        ),
        ("noise", vec![7; 4096], InvalidArgument),
        ("nothing", Vec::new(), InvalidArgument),
    ];
    for (what, zip, code) in cases {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        stdfs::create_dir(&root).unwrap();
        let refused = unzip(&root, &zip, WIDE).map_err(|error| error.code);
        assert_eq!(refused, Err(code), "{what}");
        assert_eq!(stdfs::read_dir(top.path()).unwrap().count(), 1, "{what}");
        let written: u64 = picture(&root).iter().map(|(.., content)| content.len() as u64).sum();
        assert!(written <= WIDE.bytes, "{what}: {written}");
    }
    assert!(!Path::new("/tmp/cooper-evil").exists());
}

#[test]
fn a_zip_or_a_tar_gz_that_is_cut_or_damaged_is_refused() {
    let from = tree();
    let (zip, gz) = (zipped(from.path()), gzipped(from.path()));
    for of in 0..10 {
        let to = tempfile::tempdir().unwrap();
        let refused = unzip(to.path(), &zip[..zip.len() * of / 10], WIDE).unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument, "zip {of}");
        let refused = gunzip(to.path(), &gz[..gz.len() * of / 10], WIDE).unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument, "tar.gz {of}");
    }
    for at in [8, 4, 1] {
        let mut damaged = gz.clone();
        let place = damaged.len() - at;
        damaged[place] ^= 1;
        let to = tempfile::tempdir().unwrap();
        assert_eq!(gunzip(to.path(), &damaged, WIDE).unwrap_err().code, Code::InvalidArgument, "{at}");
    }
}

#[test]
fn a_tar_gz_that_becomes_too_large_ends_at_the_bound() {
    let bomb = python(
        "import tarfile
t = tarfile.open(fileobj=out, mode='w:gz'); it = tarfile.TarInfo('f'); it.size = 80 << 20
t.addfile(it, io.BytesIO(bytes(it.size))); t.close()",
    );
    assert!(bomb.len() < 1 << 20);
    let to = tempfile::tempdir().unwrap();
    assert_eq!(gunzip(to.path(), &bomb, WIDE).unwrap_err().code, Code::TooLarge);
    assert_eq!(picture(to.path()), []);
}

proptest! {
    /// Whatever the bytes are: an answer, nothing beside the root, no more than the bound.
    #[test]
    fn noise_in_a_zip_is_refused_or_stays_beneath(edits in prop::collection::vec((0usize..2000, any::<u8>()), 1..20)) {
        static MADE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            zip_of("add('d/', b'', 0o40755); add('l', b'd', 0o120777); add('d/f', b'content' * 100); add('s', b'x', method=0)")
        });
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        stdfs::create_dir(&root).unwrap();
        let mut zip = MADE.clone();
        for (at, byte) in edits {
            let at = at % zip.len();
            zip[at] = byte;
        }
        let bounds = Bounds { bytes: 1 << 20, ..WIDE };
        if let Ok(done) = unzip(&root, &zip, bounds) {
            prop_assert!(done.content_bytes <= bounds.bytes);
        }
        prop_assert_eq!(stdfs::read_dir(top.path()).unwrap().count(), 1);
        let _ = super::super::helper::remove(&root);
    }
}
