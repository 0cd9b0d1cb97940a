//! A language model's server on loopback: speaks the chat protocol, and says what a test wants it to.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// How it answers.
#[derive(Clone)]
pub enum Says {
    /// As a well-behaved server.
    Text(String),
    /// Schemas are unknown to it: it refuses them, and answers where none is asked for.
    WithoutSchema(String),
    /// These bytes, with this status.
    Raw(u16, String),
    /// Only after this time.
    Late(Duration),
    /// Nothing: it hangs up.
    Nothing,
}

pub struct Model {
    pub url: String,
    says: Arc<Mutex<Says>>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Model {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let (says, asked) = (Arc::new(Mutex::new(Says::Nothing)), Arc::new(Mutex::new(Vec::new())));
        let (of_thread, heard) = (says.clone(), asked.clone());
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let says = of_thread.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let heard = heard.clone();
                thread::spawn(move || serve(stream, &says, &heard));
            }
        });
        Self { url, says, asked }
    }

    pub fn says(&self, says: Says) {
        *self.says.lock().unwrap_or_else(PoisonError::into_inner) = says;
    }

    /// What it was asked since the last time: heads and bodies.
    pub fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serve(stream: TcpStream, says: &Says, heard: &Mutex<Vec<(String, Value)>>) {
    let Some((head, body)) = request(&stream) else { return };
    let plain = body["response_format"]["type"] != "json_schema";
    heard.lock().unwrap_or_else(PoisonError::into_inner).push((head, body));
    let (status, text) = match says {
        Says::Text(text) => (200, completion(text)),
        Says::WithoutSchema(text) if plain => (200, completion(text)),
        Says::WithoutSchema(_) => (400, json!({"error": {"message": "no json_schema here"}}).to_string()),
        Says::Raw(status, text) => (*status, text.clone()),
        Says::Late(time) => {
            thread::sleep(*time);
            (200, completion("{}"))
        }
        Says::Nothing => return,
    };
    let length = text.len();
    let _ = write!(
        &stream,
        "HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
    );
}

fn completion(text: &str) -> String {
    json!({
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 700, "completion_tokens": 70, "total_tokens": 770},
    })
    .to_string()
}

fn request(stream: &TcpStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length?];
    reader.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).ok()?))
}
