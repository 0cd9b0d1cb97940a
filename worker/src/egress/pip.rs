//! `pip` typed in a session: its request comes over a connection like any other, to a name that is this worker's own. The
//! host decides and starts the installer; here its output goes to who asked.
//!
//! Who asks is known by the connection: a session can ask for itself alone, and for what `cooper packages` may do to it.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, rc::Rc, time::Duration};

use cooper_common::limits::{
    exec::{PIP_MS_MAX, PIP_REQUEST_BYTES_MAX},
    network::HEAD_MS_MAX,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedWriteHalf, unix::pipe},
    sync::oneshot,
    time::timeout,
};

use super::{FromEgress, Proxy, Session};

/// No name of the DNS. `pip.py` knows it.
pub const HOST: &str = "pip.cooper.internal";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n";
const REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const PIECE_BYTES: usize = 16 << 10;
/// Of what an installer leaves behind, output is waited for this long.
const REST: Duration = Duration::from_secs(2);

/// Frames of the answer: one of these, the length as four bytes, the content. END holds an [`Ended`].
const END: u8 = 0;
const OUT: u8 = 1;
const ERR: u8 = 2;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    pub exit_code: i32,
    /// Why nothing was run.
    pub error: String,
}

/// Those that wait for the host.
#[derive(Default)]
pub struct Waiting {
    last: u64,
    ends: BTreeMap<u64, oneshot::Sender<Ended>>,
}

impl Waiting {
    pub fn ended(&mut self, id: u64, ended: Ended) {
        if let Some(end) = self.ends.remove(&id) {
            let _ = end.send(ended);
        }
    }
}

/// Tells the host when nobody waits any more.
struct Asked<'a> {
    proxy: &'a Proxy,
    id: u64,
    ended: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.proxy.pips.borrow_mut().ends.remove(&self.id);
        if !self.ended {
            // A host that does not read ends the installer with the proxy.
            let _ = self.proxy.tell_host(&FromEgress::PipGone { id: self.id }, &[]);
        }
    }
}

pub(super) async fn serve(proxy: &Rc<Proxy>, session: &Session, mut client: TcpStream, begun: Vec<u8>) {
    let read = timeout(Duration::from_millis(HEAD_MS_MAX), request(&mut client, begun)).await;
    let Ok(Some(request)) = read else {
        let _ = client.write_all(REFUSED).await;
        return;
    };
    let _ = timeout(Duration::from_millis(PIP_MS_MAX), run(proxy, session, client, request)).await;
}

/// The body of a POST.
async fn request(client: &mut TcpStream, mut bytes: Vec<u8>) -> Option<String> {
    let (head, length) = {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(head) = request.parse(&bytes).ok()? else { return None };
        let length =
            request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"))?;
        let length: usize = std::str::from_utf8(length.value).ok()?.trim().parse().ok()?;
        (head, length)
    };
    if length > PIP_REQUEST_BYTES_MAX {
        return None;
    }
    while bytes.len() < head + length {
        let room = (head + length - bytes.len()) as u64;
        if (&mut *client).take(room).read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    String::from_utf8(bytes[head..head + length].to_vec()).ok()
}

async fn run(proxy: &Proxy, session: &Session, client: TcpStream, request: String) -> io::Result<()> {
    let ((out, out_write), (err, err_write)) = (output()?, output()?);
    let (end, mut ended) = oneshot::channel();
    let id = {
        let mut pips = proxy.pips.borrow_mut();
        pips.last += 1;
        let id = pips.last;
        pips.ends.insert(id, end);
        id
    };
    let mut asked = Asked { proxy, id, ended: false };
    let message = FromEgress::Pip { id, session: session.id.clone(), order: request };
    proxy.tell_host(&message, &[&out_write, &err_write])?;
    drop((out_write, err_write));
    let (mut from, mut to) = client.into_split();
    to.write_all(HEAD).await?;
    let (mut out, mut err) = (Some(out), Some(err));
    let (mut out_piece, mut err_piece, mut more) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES], [0]);
    let rest = tokio::time::sleep(Duration::from_millis(2 * PIP_MS_MAX));
    tokio::pin!(rest);
    let mut end = None;
    while end.is_none() || out.is_some() || err.is_some() {
        tokio::select! {
            read = piece(&mut out, &mut out_piece), if out.is_some() => match read {
                0 => out = None,
                read => frame(&mut to, OUT, &out_piece[..read]).await?,
            },
            read = piece(&mut err, &mut err_piece), if err.is_some() => match read {
                0 => err = None,
                read => frame(&mut to, ERR, &err_piece[..read]).await?,
            },
            heard = &mut ended, if end.is_none() => {
                asked.ended = heard.is_ok();
                let gone = |_| Ended { exit_code: 1, error: "the installer is gone".to_owned() };
                end = Some(heard.unwrap_or_else(gone));
                rest.as_mut().reset(tokio::time::Instant::now() + REST);
            }
            // Nothing is to come but the end of who asked.
            _ = from.read(&mut more) => return Err(io::ErrorKind::BrokenPipe.into()),
            () = &mut rest => break,
        }
    }
    frame(&mut to, END, &serde_json::to_vec(&end)?).await?;
    to.shutdown().await
}

/// The end to read without waiting, and the end that an installer gets.
fn output() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// 0 at the end.
async fn piece(from: &mut Option<pipe::Receiver>, into: &mut [u8]) -> usize {
    match from {
        Some(from) => from.read(into).await.unwrap_or(0),
        None => 0,
    }
}

async fn frame(to: &mut OwnedWriteHalf, kind: u8, content: &[u8]) -> io::Result<()> {
    let mut head = [kind, 0, 0, 0, 0];
    head[1..].copy_from_slice(&(content.len() as u32).to_be_bytes());
    to.write_all(&head).await?;
    to.write_all(content).await
}
