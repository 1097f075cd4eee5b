//! A TCP proxy whose network can be broken while connections run through it.
//!
//! | fault | what the client sees |
//! |---|---|
//! | [`Proxy::delay`] | everything in that direction arrives later |
//! | [`Proxy::bandwidth`] | everything in that direction trickles |
//! | [`Proxy::swallow_replies`] | requests are carried out, answers never come |
//! | [`Proxy::half_open`] | connections stay up and nothing moves, as when a cable is pulled |
//! | [`Proxy::cut`] | open connections are closed in order (FIN) |
//! | [`Proxy::reset`] | open connections break (RST) |
//! | [`Proxy::refuse`] | new connections are refused |
//!
//! Faults add up until [`Proxy::heal`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Bytes read at once: one read is one piece for [`Proxy::swallow_next_replies`].
const PIECE_BYTES: usize = 64 * 1024;

/// Pieces under way in one direction of one connection before the sender feels back pressure.
const PIECES_UNDER_WAY: usize = 256;

/// Which half of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: requests.
    ToServer,
    /// From the server to the client: replies.
    ToClient,
}

/// What passed through so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Bytes forwarded to the server.
    pub bytes_to_server: u64,
    /// Bytes forwarded to the client.
    pub bytes_to_client: u64,
    /// Bytes of replies thrown away.
    pub bytes_swallowed: u64,
}

/// A running proxy; dropping it closes everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    line: Arc<Line>,
    _listening: AbortOnDropHandle<()>,
}

#[derive(Debug, Clone, Default)]
struct Faults {
    delay: [Duration; 2],
    bytes_per_second: [Option<u64>; 2],
    /// Pieces of replies still to be thrown away.
    swallow: u64,
    half_open: bool,
    refuse: bool,
}

#[derive(Debug)]
struct Line {
    upstream: watch::Sender<String>,
    faults: watch::Sender<Faults>,
    listening: watch::Sender<bool>,
    endings: broadcast::Sender<Ending>,
    connections: AtomicU64,
    forwarded: [AtomicU64; 2],
    swallowed: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    Cut,
    Reset,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `upstream` (`HOST:PORT`).
    ///
    /// The server is dialled for each connection, so it may be down at first.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let line = Arc::new(Line {
            upstream: watch::Sender::new(upstream.into()),
            faults: watch::Sender::new(Faults::default()),
            listening: watch::Sender::new(true),
            endings: broadcast::Sender::new(16),
            connections: AtomicU64::new(0),
            forwarded: [AtomicU64::new(0), AtomicU64::new(0)],
            swallowed: AtomicU64::new(0),
        });
        let listening = tokio::spawn(listen(Arc::clone(&line), listener, address));
        Ok(Self {
            address,
            line,
            _listening: AbortOnDropHandle::new(listening),
        })
    }

    /// `HOST:PORT` that clients dial.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Sends connections accepted from now on to another server.
    pub fn point_to(&self, upstream: impl Into<String>) {
        self.line.upstream.send_replace(upstream.into());
    }

    /// Delivers everything in `direction` later by `delay`, without limiting throughput.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.line
            .faults
            .send_modify(|faults| faults.delay[direction as usize] = delay);
    }

    /// Lets at most `bytes_per_second` (at least 1) through in `direction`, per connection.
    pub fn bandwidth(&self, direction: Direction, bytes_per_second: u64) {
        let limit = Some(bytes_per_second.max(1));
        self.line
            .faults
            .send_modify(|faults| faults.bytes_per_second[direction as usize] = limit);
    }

    /// Throws all replies away from now on; requests pass and are carried out.
    pub fn swallow_replies(&self) {
        self.swallow_next_replies(u64::MAX);
    }

    /// Throws away the next `pieces` of replies, then forwards again.
    ///
    /// A piece is what one read yields: for a client that waits for each answer it is one answer.
    pub fn swallow_next_replies(&self, pieces: u64) {
        self.line.faults.send_modify(|faults| faults.swallow = pieces);
    }

    /// Keeps every connection open, new ones included, and moves nothing.
    pub fn half_open(&self) {
        self.line.faults.send_modify(|faults| faults.half_open = true);
    }

    /// Closes all open connections in order. New ones are served.
    pub fn cut(&self) {
        let _ = self.line.endings.send(Ending::Cut);
    }

    /// Breaks all open connections with a reset. New ones are served.
    pub fn reset(&self) {
        let _ = self.line.endings.send(Ending::Reset);
    }

    /// Refuses new connections; open ones live on. Returns when nothing listens any more.
    pub async fn refuse(&self) {
        self.line.faults.send_modify(|faults| faults.refuse = true);
        self.listening(false).await;
    }

    /// Ends all faults; returns when new connections are accepted. What was held back flows on, what was
    /// swallowed stays lost.
    pub async fn heal(&self) {
        self.line.faults.send_replace(Faults::default());
        self.listening(true).await;
    }

    /// What passed through so far.
    pub fn counts(&self) -> Counts {
        let line = &self.line;
        Counts {
            connections: line.connections.load(Ordering::Relaxed),
            bytes_to_server: line.forwarded[Direction::ToServer as usize].load(Ordering::Relaxed),
            bytes_to_client: line.forwarded[Direction::ToClient as usize].load(Ordering::Relaxed),
            bytes_swallowed: line.swallowed.load(Ordering::Relaxed),
        }
    }

    async fn listening(&self, wanted: bool) {
        // The sender lives in `self.line`, so waiting cannot fail.
        let _ = self
            .line
            .listening
            .subscribe()
            .wait_for(|listening| *listening == wanted)
            .await;
    }
}

async fn listen(line: Arc<Line>, listener: TcpListener, address: SocketAddr) {
    let mut faults = line.faults.subscribe();
    let mut listener = Some(listener);
    let mut open = JoinSet::new();
    loop {
        let refuse = faults.borrow_and_update().refuse;
        if refuse {
            listener = None;
        } else if listener.is_none() {
            // Taken for a moment by someone else: try again.
            listener = TcpListener::bind(address).await.ok();
        }
        line.listening.send_replace(listener.is_some());
        match &listener {
            Some(listening) => tokio::select! {
                _ = faults.changed() => {}
                accepted = listening.accept() => if let Ok((client, _)) = accepted {
                    line.connections.fetch_add(1, Ordering::Relaxed);
                    open.spawn(connection(Arc::clone(&line), client));
                },
                Some(_) = open.join_next() => {}
            },
            None if refuse => {
                let _ = faults.changed().await;
            }
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// One connection until either side, or a fault, ends it.
async fn connection(line: Arc<Line>, mut client: TcpStream) {
    let mut endings = line.endings.subscribe();
    let mut faults = line.faults.subscribe();
    let upstream = line.upstream.borrow().clone();
    let dial = async {
        let _ = faults.wait_for(|faults| !faults.half_open).await;
        TcpStream::connect(upstream).await
    };
    let dialled = tokio::select! {
        server = dial => server.map_err(|_| Ending::Reset),
        ending = endings.recv() => Err(ending.unwrap_or(Ending::Cut)),
    };
    let mut server = match dialled {
        Ok(server) => server,
        Err(Ending::Cut) => return,
        Err(Ending::Reset) => {
            let _ = client.set_zero_linger();
            return;
        }
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ending = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            _ = async { tokio::join!(
                pump(&line, Direction::ToServer, from_client, to_server),
                pump(&line, Direction::ToClient, from_server, to_client),
            ) } => Ending::Cut,
            ending = endings.recv() => ending.unwrap_or(Ending::Cut),
        }
    };
    if matches!(ending, Ending::Reset) {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Moves one direction until its end, through a queue in which pieces wait for their time.
async fn pump(
    line: &Line,
    direction: Direction,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) {
    let (queue, mut queued) = mpsc::channel::<(Instant, Bytes)>(PIECES_UNDER_WAY);
    let mut faults = line.faults.subscribe();
    let mut healed = line.faults.subscribe();
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE_BYTES);
            if !matches!(from.read_buf(&mut buffer).await, Ok(read) if read > 0) {
                break;
            }
            let piece = buffer.split().freeze();
            let _ = faults.wait_for(|faults| !faults.half_open).await;
            if direction == Direction::ToClient && swallows(line) {
                line.swallowed.fetch_add(piece.len() as u64, Ordering::Relaxed);
                continue;
            }
            let due = Instant::now() + faults.borrow().delay[direction as usize];
            if queue.send((due, piece)).await.is_err() {
                break;
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = queued.recv().await {
            tokio::time::sleep_until(due).await;
            let _ = healed.wait_for(|faults| !faults.half_open).await;
            if write(line, direction, &mut to, &piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}

/// Writes one piece, no faster than the bandwidth allows.
async fn write(
    line: &Line,
    direction: Direction,
    to: &mut (impl AsyncWrite + Unpin),
    piece: &[u8],
) -> io::Result<()> {
    let mut rest = piece;
    while !rest.is_empty() {
        let limit = line.faults.borrow().bytes_per_second[direction as usize];
        // A limited line moves in slices of 50 ms.
        let slice = limit.map_or(rest.len(), |limit| rest.len().min((limit / 20).max(1) as usize));
        to.write_all(&rest[..slice]).await?;
        line.forwarded[direction as usize].fetch_add(slice as u64, Ordering::Relaxed);
        if let Some(limit) = limit {
            tokio::time::sleep(Duration::from_secs_f64(slice as f64 / limit as f64)).await;
        }
        rest = &rest[slice..];
    }
    Ok(())
}

/// Whether the next piece of replies is thrown away; counts it.
fn swallows(line: &Line) -> bool {
    let mut swallow = false;
    line.faults.send_if_modified(|faults| {
        swallow = faults.swallow > 0;
        if faults.swallow != u64::MAX {
            faults.swallow = faults.swallow.saturating_sub(1);
        }
        false
    });
    swallow
}
