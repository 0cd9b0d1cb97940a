//! `cooper health`: asks `/health` and says yes or no; needs no token and no runtime, as container checks run often.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use cooper_common::{config::Role, error::Code};
use serde_json::Value;

use crate::{
    context::Context,
    failure::{Failure, Result, cause},
};

const TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: u64 = 64 << 10;

pub fn run(context: &Context) -> Result<u8> {
    let config = context.config(Role::Client, Default::default())?;
    let url = match config.text("url") {
        Some(url) => url,
        None => {
            let path = config.data().join("endpoint");
            fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(|_| {
                Failure::new(Code::Unavailable, format!("no cluster here: {} does not exist", path.display()))
                    .hint("start one with `cooper up`, or name one with --url")
            })?
        }
    };
    let body = ask(&url)?;
    let status = body["status"].as_str().unwrap_or("unknown").to_owned();
    context.out.answer(|| body.clone(), || status.clone())?;
    Ok(if status == "healthy" { 0 } else { 1 })
}

/// GET /health as JSON.
pub fn ask(url: &str) -> Result<Value> {
    get(url, "/health")
}

/// GET of a page that answers with a JSON object, whatever its status.
pub fn get(url: &str, path: &str) -> Result<Value> {
    let away = |what: String| {
        Failure::new(Code::Unavailable, format!("{url} is not healthy: {what}"))
            .hint("see its log, or `cooper status`")
    };
    let Some(host) = url.strip_prefix("http://") else {
        return Err(Failure::new(
            Code::InvalidArgument,
            format!("health asks http:// URLs only, not {url:?}"),
        ));
    };
    let host = host.split('/').next().unwrap_or_default();
    let with_port = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ => format!("{host}:80"),
    };
    let addresses = with_port.to_socket_addrs().map_err(|error| away(error.to_string()))?;
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, TIMEOUT).and_then(|stream| exchange(stream, host, path)) {
            Ok(answer) => {
                return parse(&answer).ok_or_else(|| away("it does not answer like Cooper".to_owned()));
            }
            Err(error) => last = cause(&error),
        }
    }
    Err(away(last))
}

fn exchange(mut stream: TcpStream, host: &str, path: &str) -> std::io::Result<String> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn parse(answer: &str) -> Option<Value> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.").then_some(())?;
    let value: Value = serde_json::from_str(body.trim()).ok()?;
    value.is_object().then_some(value)
}
