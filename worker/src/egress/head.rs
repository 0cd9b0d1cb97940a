//! What a connection begins with, and the name in it: a request to a proxy, a request to a server, or TLS.

use cooper_common::{limits::network::HEAD_BYTES_MAX, network};

/// Headers of a request.
const HEADERS_MAX: usize = 100;

/// Where somebody wants to go. Everything after `consumed` bytes belongs to the one who is reached.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub host: String,
    pub port: u16,
    pub kind: Kind,
    pub consumed: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// `CONNECT host:port`: to be answered before anything goes on.
    Connect,
    /// `GET http://host/…`: goes on as this.
    Absolute { request: Request },
    /// `GET /…` with a Host: goes on as it is.
    Plain,
    /// A ClientHello: goes on as it is.
    Tls,
}

/// A request without what is between client and proxy.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    method: String,
    path: String,
    host: String,
    headers: Vec<u8>,
}

impl Request {
    /// As the server itself gets it.
    pub fn to_server(&self) -> Vec<u8> {
        self.written(&self.path, "")
    }

    /// As another proxy gets it; `authorization` is a line of its own or empty.
    pub fn to_proxy(&self, authorization: &str) -> Vec<u8> {
        self.written(&format!("http://{}{}", self.host, self.path), authorization)
    }

    fn written(&self, target: &str, more: &str) -> Vec<u8> {
        let Self { method, host, .. } = self;
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}").into_bytes();
        bytes.extend(&self.headers);
        bytes.extend(b"\r\n");
        bytes
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    Head(Head),
    /// More bytes are needed.
    More,
    /// It names nobody, or is none of these.
    Unreadable,
}

/// Reads the beginning of a connection.
pub fn parse(bytes: &[u8]) -> Parsed {
    let parsed = match bytes.first() {
        None => Parsed::More,
        Some(0x16) => tls(bytes),
        Some(byte) if byte.is_ascii_uppercase() => http(bytes),
        Some(_) => Parsed::Unreadable,
    };
    match parsed {
        Parsed::More if bytes.len() >= HEAD_BYTES_MAX => Parsed::Unreadable,
        parsed => parsed,
    }
}

fn http(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let consumed = match request.parse(bytes) {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) => return Parsed::More,
        Err(_) => return Parsed::Unreadable,
    };
    let head = match (request.method, request.path) {
        (Some("CONNECT"), Some(target)) => network::authority(target, None).map(|(host, port)| Head {
            host,
            port,
            kind: Kind::Connect,
            consumed,
        }),
        (Some(method), Some(target)) if target.starts_with('/') || target == "*" => {
            let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
            let host = hosts.next().and_then(|header| std::str::from_utf8(header.value).ok());
            let once = hosts.next().is_none() && method != "CONNECT";
            host.filter(|_| once)
                .and_then(|host| network::authority(host, Some(80)))
                .map(|(host, port)| Head { host, port, kind: Kind::Plain, consumed: 0 })
        }
        (Some(method), Some(target)) => absolute(method, target, request.headers, consumed),
        _ => None,
    };
    head.map_or(Parsed::Unreadable, Parsed::Head)
}

fn absolute(method: &str, target: &str, headers: &[httparse::Header<'_>], consumed: usize) -> Option<Head> {
    let rest =
        target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://")).map(|_| &target[7..])?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (named, path) = rest.split_at(end);
    let (host, port) = network::authority(named, Some(80))?;
    let path = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    };
    let upgrade = headers.iter().any(|header| header.name.eq_ignore_ascii_case("upgrade"));
    let mut kept = Vec::new();
    for header in headers {
        let name = header.name.to_ascii_lowercase();
        // The host is the one that was judged; the rest is between client and proxy.
        if name == "host" || name == "connection" || name == "keep-alive" || name.starts_with("proxy-") {
            continue;
        }
        kept.extend(header.name.as_bytes());
        kept.extend(b": ");
        kept.extend(header.value);
        kept.extend(b"\r\n");
    }
    // One request a connection: the next may want to go elsewhere.
    kept.extend(if upgrade { b"Connection: Upgrade\r\n".as_slice() } else { b"Connection: close\r\n" });
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let shown = if port == 80 { bracketed } else { format!("{bracketed}:{port}") };
    let request = Request { method: method.to_owned(), path, host: shown, headers: kept };
    Some(Head { host, port, kind: Kind::Absolute { request }, consumed })
}

/// The name that a ClientHello is for (RFC 8446 4.1.2, RFC 6066 3). The port is not in it.
fn tls(bytes: &[u8]) -> Parsed {
    let mut message = Vec::new();
    let mut rest = bytes;
    let hello = loop {
        if let Some(hello) = handshake(&message) {
            break hello;
        }
        // The message may lie in several records.
        let Some((header, after)) = rest.split_at_checked(5) else { return Parsed::More };
        let length = usize::from(header[3]) << 8 | usize::from(header[4]);
        if header[0] != 0x16 || header[1] != 3 || length == 0 || length > 1 << 14 {
            return Parsed::Unreadable;
        }
        let Some((record, after)) = after.split_at_checked(length) else { return Parsed::More };
        message.extend_from_slice(record);
        rest = after;
        if message[0] != 1 {
            return Parsed::Unreadable;
        }
    };
    match server_name(hello).and_then(|name| network::host(&name)) {
        Some(host) => Parsed::Head(Head { host, port: 443, kind: Kind::Tls, consumed: 0 }),
        None => Parsed::Unreadable,
    }
}

/// The body of the ClientHello, once it is whole.
fn handshake(message: &[u8]) -> Option<&[u8]> {
    let (header, body) = message.split_at_checked(4)?;
    let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
    body.get(..length)
}

fn server_name(hello: &[u8]) -> Option<String> {
    let mut hello = Cursor(hello);
    // Version and random.
    hello.take(34)?;
    hello.vector(1)?;
    hello.vector(2)?;
    hello.vector(1)?;
    let mut extensions = Cursor(hello.vector(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let body = extensions.vector(2)?;
        if kind != 0 {
            continue;
        }
        let mut names = Cursor(Cursor(body).vector(2)?);
        // Of names there is one kind.
        return (names.number(1)? == 0)
            .then_some(())
            .and_then(|()| String::from_utf8(names.vector(2)?.to_vec()).ok());
    }
    None
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }
    /// With a length of so many bytes before it.
    fn vector(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let length = self.number(bytes)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(bytes: &[u8]) -> Head {
        match parse(bytes) {
            Parsed::Head(head) => head,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_connect_names_one_host() {
        let found = head(b"CONNECT A.test:443 HTTP/1.1\r\nHost: evil.test:80\r\n\r\nearly");
        assert_eq!((&*found.host, found.port, found.kind), ("a.test", 443, Kind::Connect));
        assert_eq!(found.consumed, b"CONNECT A.test:443 HTTP/1.1\r\nHost: evil.test:80\r\n\r\n".len());
        for bad in [
            "CONNECT a.test HTTP/1.1\r\n\r\n",
            "CONNECT a.test:443@evil.test:80 HTTP/1.1\r\n\r\n",
            "CONNECT http://a.test:443 HTTP/1.1\r\n\r\n",
            "CONNECT a.test:443 evil.test:443 HTTP/1.1\r\n\r\n",
            "CONNECT /a HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "CONNECT a.test:443\r\n\r\n",
            "GET /x HTTP/1.1\r\n\r\n",
            "GET /x HTTP/1.1\r\nHost: a.test\r\nHost: evil.test\r\n\r\n",
            "GET ftp://a.test/ HTTP/1.1\r\n\r\n",
            "GET http://user@a.test/ HTTP/1.1\r\n\r\n",
            "SSH-2.0-x\r\n\r\n\r\n",
            "\0\0\0",
        ] {
            assert_eq!(parse(bad.as_bytes()), Parsed::Unreadable, "{bad:?}");
        }
    }

    #[test]
    fn a_request_to_the_proxy_goes_on_to_the_host_it_names() {
        let text = b"POST http://A.test:8080/x?y=1 HTTP/1.1\r\nHost: evil.test\r\nProxy-Authorization: z\r\nX-Y: 1\r\nConnection: keep-alive\r\n\r\nbody";
        let Head { host, port, kind: Kind::Absolute { request }, consumed } = head(text) else { panic!() };
        assert_eq!((&*host, port, &text[consumed..]), ("a.test", 8080, b"body".as_slice()));
        let expected = "POST /x?y=1 HTTP/1.1\r\nHost: a.test:8080\r\nX-Y: 1\r\nConnection: close\r\n\r\n";
        assert_eq!(String::from_utf8(request.to_server()).unwrap(), expected);
        assert!(
            request
                .to_proxy("P: q\r\n")
                .starts_with(b"POST http://a.test:8080/x?y=1 HTTP/1.1\r\nHost: a.test:8080\r\nP: q\r\n")
        );
    }

    fn client_hello(name: &str) -> Vec<u8> {
        let name = [&[0, 0, name.len() as u8], name.as_bytes()].concat();
        let list = [&[0, name.len() as u8], &*name].concat();
        let extension = [&[0, 0, 0, list.len() as u8], &*list].concat();
        let other = [0, 43, 0, 3, 2, 3, 4];
        let extensions = [&other[..], &extension].concat();
        let body =
            [&[3, 3][..], &[7; 32], &[0], &[0, 2, 19, 1], &[1, 0], &[0, extensions.len() as u8], &extensions]
                .concat();
        [&[1, 0, 0, body.len() as u8], &*body].concat()
    }

    fn record(part: &[u8]) -> Vec<u8> {
        [&[0x16, 3, 1, 0, part.len() as u8], part].concat()
    }

    #[test]
    fn tls_is_for_the_name_in_its_first_message_also_in_pieces() {
        let hello = client_hello("Api.Example.com");
        let whole = record(&hello);
        assert_eq!(
            head(&whole),
            Head { host: "api.example.com".to_owned(), port: 443, kind: Kind::Tls, consumed: 0 }
        );
        let pieces = [record(&hello[..20]), record(&hello[20..])].concat();
        assert_eq!(head(&pieces).host, "api.example.com");
        for cut in 1..pieces.len() {
            assert_eq!(parse(&pieces[..cut]), Parsed::More, "{cut}");
        }
        assert_eq!(parse(&record(&client_hello("a b"))), Parsed::Unreadable);
    }

    #[test]
    fn a_beginning_without_an_end_is_not_waited_for() {
        let endless = [b"GET /".as_slice(), &vec![b'a'; HEAD_BYTES_MAX]].concat();
        assert_eq!(parse(&endless[..100]), Parsed::More);
        assert_eq!(parse(&endless), Parsed::Unreadable);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(first in prop_oneof![Just(0x16u8), Just(b'G'), any::<u8>()],
                                              bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&[&[first], &*bytes].concat());
        }

        #[test]
        fn a_changed_hello_is_read_without_a_panic(at in 0usize..80, byte in any::<u8>()) {
            let mut hello = record(&client_hello("a.test"));
            let at = at % hello.len();
            hello[at] = byte;
            let _ = parse(&hello);
        }
    }
}
