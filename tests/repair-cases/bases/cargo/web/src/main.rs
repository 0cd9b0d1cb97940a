//! Answers every request with one line; `app check` asks it.

use std::{
    env,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
};

fn main() {
    if env::args().nth(1).is_some() {
        TcpStream::connect("127.0.0.1:8000").expect("it listens");
        return;
    }
    for mut stream in TcpListener::bind("0.0.0.0:8000").expect("the port is free").incoming().flatten() {
        let said = say();
        let _ = stream.read(&mut [0; 1024]);
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{said}", said.len());
    }
}

fn say() -> &'static str {
    "well"
}
