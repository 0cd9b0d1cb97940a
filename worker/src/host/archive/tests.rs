use std::{
    fs as stdfs,
    io::Cursor,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
};

use proptest::prelude::*;

use super::*;

const WIDE: Bounds = Bounds { entries: 10_000, bytes: 64 << 20 };

fn opened(dir: &Path) -> OwnedFd {
    stdfs::File::open(dir).unwrap().into()
}

fn packed(dir: &Path, bounds: Bounds) -> Result<(Vec<u8>, Summary)> {
    let mut out = Vec::new();
    let summary = pack(&opened(dir), &mut tar::Writer::new(&mut out), bounds, |_, _| true)?;
    Ok((out, summary))
}

fn unpacked(dir: &Path, tar: &[u8]) -> Result<Summary> {
    unpack_plain(&opened(dir), &mut tar::Reader::new(Cursor::new(tar)), WIDE)
}

/// One entry as a hostile hand writes it.
fn entry(path: &[u8], kind: u8, link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    block[..path.len()].copy_from_slice(path);
    block[100..107].copy_from_slice(b"0004755");
    block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    block[136..147].copy_from_slice(b"00000000001");
    block[148..156].fill(b' ');
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(content);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

/// Everything in a tree that a copy of it must have too.
fn picture(dir: &Path) -> Vec<(PathBuf, u32, i64, i64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in stdfs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let stat = stdfs::symlink_metadata(&path).unwrap();
            let content = if stat.is_symlink() {
                stdfs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else if stat.is_dir() {
                dirs.push(path.clone());
                Vec::new()
            } else {
                stdfs::read(&path).unwrap()
            };
            let relative = path.strip_prefix(dir).unwrap().to_owned();
            all.push((relative, stat.mode(), stat.mtime(), stat.mtime_nsec(), content));
        }
    }
    all.sort();
    all
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let from = tempfile::tempdir().unwrap();
    let deep = "x".repeat(90) + "/" + &"y".repeat(90);
    stdfs::create_dir_all(from.path().join(&deep)).unwrap();
    stdfs::write(from.path().join(&deep).join("ä-long"), vec![7; 100_000]).unwrap();
    stdfs::write(from.path().join("empty"), "").unwrap();
    stdfs::write(from.path().join("run"), "#!/bin/sh\n").unwrap();
    stdfs::set_permissions(from.path().join("run"), stdfs::Permissions::from_mode(0o751)).unwrap();
    stdfs::hard_link(from.path().join("run"), from.path().join("run-too")).unwrap();
    symlink("../outside", from.path().join("up")).unwrap();
    symlink("l".repeat(300), from.path().join("long-link")).unwrap();
    stdfs::write(from.path().join(OsStr::from_bytes(b"not-utf8-\xff")), "n").unwrap();
    stdfs::create_dir(from.path().join("closed")).unwrap();
    stdfs::write(from.path().join("closed/in"), "in").unwrap();
    stdfs::set_permissions(from.path().join("closed"), stdfs::Permissions::from_mode(0o500)).unwrap();
    let before = picture(from.path());

    let (tar, summary) = packed(from.path(), WIDE).unwrap();
    let to = tempfile::tempdir().unwrap();
    assert_eq!(unpacked(to.path(), &tar).unwrap(), summary);
    assert_eq!((summary.files, summary.symlinks, summary.hard_links, summary.directories), (5, 2, 1, 3));
    assert_eq!(picture(to.path()), before);
    let inode = |name: &str| stdfs::metadata(to.path().join(name)).unwrap().ino();
    assert_eq!(inode("run"), inode("run-too"));
    // Once more over itself: what is there is replaced.
    assert_eq!(unpacked(to.path(), &tar).unwrap(), summary);
    assert_eq!(picture(to.path()), before);
    for dir in [&from, &to] {
        stdfs::set_permissions(dir.path().join("closed"), stdfs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn the_system_tar_reads_what_is_packed_and_what_it_packs_is_read() {
    let from = tempfile::tempdir().unwrap();
    stdfs::create_dir_all(from.path().join("d".repeat(120))).unwrap();
    stdfs::write(from.path().join("d".repeat(120)).join("f"), "content").unwrap();
    let run = |args: &[&str], dir: &Path| {
        std::process::Command::new("tar").args(args).current_dir(dir).status().is_ok_and(|it| it.success())
    };
    let work = tempfile::tempdir().unwrap();
    let (tar, _) = packed(from.path(), WIDE).unwrap();
    stdfs::write(work.path().join("ours.tar"), tar).unwrap();
    assert!(run(&["xf", "ours.tar"], work.path()));
    assert_eq!(stdfs::read(work.path().join("d".repeat(120)).join("f")).unwrap(), b"content");
    for format in ["gnu", "pax", "ustar", "v7"] {
        let theirs = work.path().join(format);
        let dir = match format {
            "v7" => "short".to_owned(),
            "ustar" => format!("{}/{}", "e".repeat(80), "f".repeat(80)),
            _ => "d".repeat(120),
        };
        stdfs::create_dir_all(from.path().join(&dir)).unwrap();
        stdfs::write(from.path().join(&dir).join("f"), "content").unwrap();
        let name = theirs.to_str().unwrap();
        assert!(run(&["cf", name, &format!("--format={format}"), &dir], from.path()), "{format}");
        let to = tempfile::tempdir().unwrap();
        unpacked(to.path(), &stdfs::read(&theirs).unwrap()).unwrap();
        assert_eq!(stdfs::read(to.path().join(&dir).join("f")).unwrap(), b"content", "{format}");
    }
}

#[test]
fn what_is_no_file_is_listed_and_never_opened() {
    let dir = tempfile::tempdir().unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let (tar, summary) = packed(dir.path(), WIDE).unwrap();
    assert_eq!((summary.skipped_count, summary.skipped), (2, vec!["fifo".to_owned(), "socket".to_owned()]));
    assert_eq!(tar.len(), 1024);
}

#[test]
fn bounds_hold_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..5 {
        stdfs::write(dir.path().join(format!("f{n}")), vec![0; 1000]).unwrap();
    }
    let (tar, _) = packed(dir.path(), WIDE).unwrap();
    for bounds in [Bounds { entries: 4, ..WIDE }, Bounds { bytes: 4_999, ..WIDE }] {
        assert_eq!(packed(dir.path(), bounds).unwrap_err().code, Code::TooLarge);
        let to = tempfile::tempdir().unwrap();
        let over = unpack_plain(&opened(to.path()), &mut tar::Reader::new(Cursor::new(&tar)), bounds);
        assert_eq!(over.unwrap_err().code, Code::TooLarge);
    }
    // A file that says that it has more than anybody can store.
    let mut huge = entry(b"huge", b'0', b"", b"");
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    huge[148..156].fill(b' ');
    let sum: u32 = huge.iter().map(|byte| u32::from(*byte)).sum();
    huge[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let to = tempfile::tempdir().unwrap();
    assert!(unpacked(to.path(), &huge).is_err());
}

#[test]
fn a_hostile_archive_puts_nothing_beside_its_root() {
    let cases: [(&str, Vec<u8>); 9] = [
        ("upwards", entry(b"../evil", b'0', b"", b"x")),
        ("upwards inside", entry(b"a/../../evil", b'0', b"", b"x")),
        ("absolute", entry(b"/tmp/evil", b'0', b"", b"x")),
        ("through a link", [entry(b"l", b'2', b"..", b""), entry(b"l/evil", b'0', b"", b"x")].concat()),
        ("through a link to a dir", [entry(b"l", b'2', b"..", b""), entry(b"l/", b'5', b"", b"")].concat()),
        ("link upwards", entry(b"evil", b'1', b"../secret", b"")),
        ("link absolute", entry(b"evil", b'1', b"/etc/passwd", b"")),
        (
            "link through a link",
            [entry(b"l", b'2', b"..", b""), entry(b"evil", b'1', b"l/secret", b"")].concat(),
        ),
        ("link to a link", [entry(b"l", b'2', b"../secret", b""), entry(b"e", b'1', b"l", b"")].concat()),
    ];
    for (what, tar) in cases {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        stdfs::create_dir(&root).unwrap();
        stdfs::write(top.path().join("secret"), "secret").unwrap();
        let refused = unpacked(&root, &tar).unwrap_err();
        assert!(matches!(refused.code, Code::PathEscapes | Code::InvalidArgument | Code::Internal), "{what}");
        let mut beside: Vec<_> =
            stdfs::read_dir(top.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        beside.sort();
        assert_eq!(beside, ["root", "secret"], "{what}");
        assert_eq!(stdfs::metadata(top.path().join("secret")).unwrap().nlink(), 1, "{what}");
    }
}

#[test]
fn a_name_that_comes_twice_is_the_later_one_and_links_are_replaced_not_followed() {
    let top = tempfile::tempdir().unwrap();
    let root = top.path().join("root");
    stdfs::create_dir(&root).unwrap();
    stdfs::write(top.path().join("secret"), "secret").unwrap();
    let tar = [
        entry(b"f", b'2', b"../secret", b""),
        entry(b"f", b'0', b"", b"first"),
        entry(b"./f", b'0', b"", b"second"),
        entry(b"dev", b'3', b"", b""),
        vec![0; 1_024],
    ]
    .concat();
    let summary = unpacked(&root, &tar).unwrap();
    assert_eq!(
        (stdfs::read(root.join("f")).unwrap(), summary.skipped),
        (b"second".to_vec(), vec!["dev".into()])
    );
    assert_eq!(stdfs::read(top.path().join("secret")).unwrap(), b"secret");
    // 4755 in the archive.
    assert_eq!(stdfs::metadata(root.join("f")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn an_archive_that_is_cut_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    stdfs::write(dir.path().join("f"), vec![1; 2_000]).unwrap();
    let (tar, _) = packed(dir.path(), WIDE).unwrap();
    for end in [0, 100, 512, 1_600, 2_000, 2_700, tar.len() - 1_024] {
        let to = tempfile::tempdir().unwrap();
        assert!(unpacked(to.path(), &tar[..end]).is_err(), "{end}");
    }
}

proptest! {
    /// Whatever the bytes are: an answer, nothing beside the root.
    #[test]
    fn noise_is_refused_or_stays_beneath(
        edits in prop::collection::vec((0usize..3000, any::<u8>()), 0..20),
        mend in any::<bool>(),
    ) {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        stdfs::create_dir(&root).unwrap();
        let mut tar = [
            entry(b"d/", b'5', b"", b""),
            entry(b"l", b'2', b"d", b""),
            entry(b"d/f", b'0', b"", b"content"),
            entry(b"h", b'1', b"d/f", b""),
        ].concat();
        for (at, byte) in edits {
            if let Some(place) = tar.get_mut(at) {
                *place = byte;
            }
        }
        if mend {
            for block in tar.chunks_mut(512).filter(|block| &block[257..262] == b"ustar") {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let _ = unpacked(&root, &tar);
        prop_assert_eq!(stdfs::read_dir(top.path()).unwrap().count(), 1);
        let _ = super::super::helper::remove(&root);
    }
}
