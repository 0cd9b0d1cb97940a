//! Calls: files listed, read and written over the second connection.

use std::{
    io::{Read, Seek},
    os::fd::AsFd,
};

use cooper_proto::{
    host::{self, to_host, to_link},
    v1::{self, down, transfer_down, transfer_up::Part, up},
};
use prost::Message as _;
use tonic::Status;

use super::{
    fakes::{self, Coordinator, Host, link, spool},
    hello,
};

async fn call(attach: &fakes::Attach, call_id: u64, op: v1::call::Op) {
    attach.tell(down::Message::Call(v1::Call { call_id, session_id: "s".into(), op: Some(op) })).await;
}

async fn opened(host: &mut Host, mode: host::open_file::Mode) -> host::OpenFile {
    match host.next().await {
        to_host::Message::OpenFile(open) if open.mode() == mode => open,
        other => panic!("not OpenFile {mode:?}: {other:?}"),
    }
}

#[tokio::test]
async fn a_directory_is_listed_and_a_refusal_is_passed_on() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    let list = v1::ListFilesRequest { session_id: "s".into(), path: "sub".into(), ..Default::default() };
    call(&attach, 9, v1::call::Op::List(list.clone())).await;
    let open = opened(&mut host, host::open_file::Mode::List).await;
    assert_eq!((open.session_id.as_str(), open.path.as_str()), ("s", "sub"));
    let answer = host::FileOpened { call_id: open.call_id, ..host::FileOpened::default() };
    let listed =
        |path: &str, kind: &str| v1::FileStat { path: path.into(), kind: kind.into(), ..Default::default() };
    let listing = v1::ListFilesResponse {
        files: vec![listed("sub/a", "dir"), listed("sub/b", "file")],
        ..Default::default()
    };
    let listing = crate::frame::sealed_memfd("listing", &listing.encode_to_vec()).unwrap();
    host.say(to_link::Message::FileOpened(answer), &[listing.as_fd()]).await;
    let up::Message::CallResult(result) = attach.next().await else { panic!("no result") };
    let Some(v1::call_result::Result::List(files)) = result.result else { panic!("{result:?}") };
    let names: Vec<_> = files.files.iter().map(|file| (file.path.as_str(), file.kind.as_str())).collect();
    assert_eq!((result.call_id, names), (9, vec![("sub/a", "dir"), ("sub/b", "file")]));

    call(&attach, 10, v1::call::Op::List(list)).await;
    let open = opened(&mut host, host::open_file::Mode::List).await;
    let error = Some(v1::Error { code: "file_not_found".into(), ..v1::Error::default() });
    let refused = host::FileOpened { call_id: open.call_id, error: error.clone(), ..Default::default() };
    host.say(to_link::Message::FileOpened(refused), &[]).await;
    let up::Message::CallResult(result) = attach.next().await else { panic!("no result") };
    assert_eq!(result.result, error.map(v1::call_result::Result::Error));
}

#[tokio::test]
async fn a_file_is_read_over_the_second_connection() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    let content: Vec<u8> = (0..300_000u32).map(|i| (i / 3) as u8).collect();
    for (offset_bytes, length_bytes) in [(0, 0), (100, 150_000), (299_999, 50), (400_000, 0)] {
        let read = v1::ReadFileRequest { path: "f".into(), offset_bytes, length_bytes, ..Default::default() };
        call(&attach, 3, v1::call::Op::Read(read)).await;
        let open = opened(&mut host, host::open_file::Mode::Read).await;
        let answer = host::FileOpened { call_id: open.call_id, ..host::FileOpened::default() };
        host.say(to_link::Message::FileOpened(answer), &[spool(&content).as_fd()]).await;
        let mut transfer = coordinator.transfer().await;
        assert_eq!(transfer.hear().await.unwrap().part, Some(Part::CallId(3)));
        let Some(Part::Stat(stat)) = transfer.hear().await.unwrap().part else { panic!("no stat") };
        assert_eq!(stat.size_bytes, 300_000);
        let mut body = Vec::new();
        loop {
            match transfer.hear().await.unwrap().part {
                Some(Part::Data(data)) => body.extend(data),
                Some(Part::Done(_)) => break,
                other => panic!("{other:?}"),
            }
        }
        let start = (offset_bytes as usize).min(content.len());
        let length = if length_bytes == 0 { usize::MAX } else { length_bytes as usize };
        assert!(body == content[start..content.len().min(start.saturating_add(length))]);
    }
}

#[tokio::test]
async fn a_file_is_written_whole_or_not_at_all() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    for whole in [true, false] {
        let header =
            v1::WriteFileHeader { path: "f".into(), mode: 0o600, create_dirs: true, ..Default::default() };
        call(&attach, 4, v1::call::Op::Write(header)).await;
        let open = opened(&mut host, host::open_file::Mode::Write).await;
        assert_eq!((open.permissions, open.create_dirs), (0o600, true));
        let mut target = tempfile::tempfile().unwrap();
        let answer = host::FileOpened { call_id: open.call_id, ..host::FileOpened::default() };
        host.say(to_link::Message::FileOpened(answer), &[target.as_fd()]).await;
        let mut transfer = coordinator.transfer().await;
        assert_eq!(transfer.hear().await.unwrap().part, Some(Part::CallId(4)));
        for _ in 0..10 {
            let data = transfer_down::Part::Data(vec![b'y'; 64 << 10]);
            transfer.say(v1::TransferDown { part: Some(data) }).await;
        }
        if whole {
            transfer.say(v1::TransferDown { part: Some(transfer_down::Part::Done(true)) }).await;
        } else {
            transfer.refuse(Status::cancelled("the client went away")).await;
        }
        let close = host::CloseFile { call_id: open.call_id, commit: whole };
        assert_eq!(host.next().await, to_host::Message::CloseFile(close));
        let stat = Some(v1::FileStat { size_bytes: 10 << 16, ..v1::FileStat::default() });
        let closed = host::FileClosed { call_id: open.call_id, error: None, stat: stat.clone() };
        host.say(to_link::Message::FileClosed(closed), &[]).await;
        if whole {
            assert_eq!(transfer.hear().await.unwrap().part, stat.map(Part::Stat));
            assert_eq!(transfer.hear().await.unwrap().part, Some(Part::Done(true)));
            let mut written = Vec::new();
            target.rewind().unwrap();
            target.read_to_end(&mut written).unwrap();
            assert!(written == vec![b'y'; 10 << 16]);
        }
    }
}

#[tokio::test]
async fn a_write_dies_with_its_attach() {
    let mut coordinator = Coordinator::start().await;
    let (mut host, _link) = link(&coordinator.addr, hello()).await;
    let mut attach = coordinator.attach().await;
    attach.welcome(1, vec![]).await;
    call(&attach, 4, v1::call::Op::Write(v1::WriteFileHeader { path: "f".into(), ..Default::default() }))
        .await;
    let open = opened(&mut host, host::open_file::Mode::Write).await;
    drop(attach);
    let close = host::CloseFile { call_id: open.call_id, commit: false };
    assert_eq!(host.next().await, to_host::Message::CloseFile(close));
}
