//! A worker's machine: the simulated host, and beside it the real link, started again whenever it ends.

use std::{cell::RefCell, io, os::fd::OwnedFd, rc::Rc, time::Duration};

use cooper_common::clock;
use cooper_proto::host::{to_host, to_link};
use cooper_worker::{
    config::{LinkConfig, Timing},
    frame::Buffer,
    link::{self, Dial},
};
use tokio::sync::{Mutex, Notify, mpsc, mpsc::error::TrySendError};

use crate::{
    cheat::Cheat,
    host::{Home, Host},
    net,
    witness::Witness,
};

/// Messages between host and link, either way, as a socket would hold.
const SOCKET_MESSAGES: usize = 64;

/// Everything a machine is made of when it starts.
#[derive(Clone)]
pub struct Machine {
    pub name: String,
    pub home: Rc<RefCell<Home>>,
    pub token: String,
    pub witness: Witness,
    pub cheat: Option<Cheat>,
    /// Somebody kills the link.
    pub kill_link: Rc<Notify>,
}

type ToLink = (to_link::Message, Vec<OwnedFd>);

/// The link's end of the socket.
struct Port {
    from_host: Mutex<mpsc::Receiver<ToLink>>,
    to_host: mpsc::Sender<to_host::Message>,
}

impl link::Host for Port {
    async fn recv(&self, _: &mut Buffer) -> io::Result<Option<ToLink>> {
        Ok(self.from_host.lock().await.recv().await)
    }

    fn try_send(&self, message: to_host::Message) -> io::Result<Result<(), to_host::Message>> {
        match self.to_host.try_send(message) {
            Ok(()) => Ok(Ok(())),
            Err(TrySendError::Full(message)) => Ok(Err(message)),
            Err(TrySendError::Closed(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    async fn writable(&self) -> io::Result<()> {
        self.to_host.reserve().await.map(drop).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Machine {
    /// Runs until the machine crashes.
    pub async fn run(self) -> turmoil::Result {
        let mut host = Host::start(self.name.clone(), self.home.clone(), self.witness.clone(), self.cheat);
        self.witness.say(format!("{} is up", self.name));
        loop {
            let why = self.with_a_link(&mut host).await;
            host.link_died();
            self.witness.say(format!("{}: link ended: {why}", self.name));
            let pause = tokio::time::sleep(Duration::from_millis(rand::random_range(10..500)));
            tokio::pin!(pause);
            loop {
                host.advance();
                tokio::select! {
                    biased;
                    () = &mut pause => break,
                    () = until(host.due()) => {}
                }
            }
        }
    }

    async fn with_a_link(&self, host: &mut Host) -> String {
        let config = LinkConfig {
            tls: Default::default(),
            coordinator_addr: format!("{}:{}", net::COORDINATOR, net::PORT),
            join_token: self.token.clone(),
            labels: Default::default(),
            timing: Timing { keepalive_ms: 5_000, reconnect_cap_ms: 2_000, ..Timing::default() },
            log_level: "info".to_owned(),
            health_listen: None,
        };
        let dial = match Dial::new(&config) {
            Ok(dial) => dial.over(net::connect()),
            Err(error) => return error.to_string(),
        };
        let (to_link, from_host) = mpsc::channel(SOCKET_MESSAGES);
        let (to_host, mut from_link) = mpsc::channel(SOCKET_MESSAGES);
        let port = Port { from_host: Mutex::new(from_host), to_host };
        // Dropped when this returns, and all its connections with it: that is how a process ends.
        let link = link::run_over(port, dial, config);
        tokio::pin!(link);
        loop {
            host.advance();
            while let Some(message) = host.next_for_link() {
                match to_link.try_send(message) {
                    Ok(()) => {}
                    Err(TrySendError::Full(message)) => {
                        host.not_told(message);
                        break;
                    }
                    Err(TrySendError::Closed(_)) => return "it closed its socket".to_owned(),
                }
            }
            if host.link_is_deaf() {
                return "it does not read".to_owned();
            }
            let wait = until(host.due().min(clock::mono_ms() + 100));
            tokio::select! {
                biased;
                () = self.kill_link.notified() => return "killed".to_owned(),
                message = from_link.recv() => match message {
                    Some(message) => host.hears(message),
                    None => return "it closed its socket".to_owned(),
                },
                end = &mut link => return format!("{end:?}"),
                () = wait => {}
            }
        }
    }
}

async fn until(at_ms: u64) {
    let wait = at_ms.saturating_sub(clock::mono_ms()).max(1);
    tokio::time::sleep(Duration::from_millis(wait)).await;
}
