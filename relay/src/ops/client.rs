//! Asks the ops listener of a running relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Chosen: a listener on this machine answers in milliseconds; beyond this the database is asked instead.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer read. Chosen: a status of a thousand sources.
const LARGEST: u64 = 4 << 20;

/// The body of `GET path`, if something answers there with 200.
pub(crate) async fn fetch(listen: SocketAddr, path: &str) -> Option<String> {
    if listen.port() == 0 {
        return None;
    }
    tokio::time::timeout(TIMEOUT, request(reachable(listen), path))
        .await
        .ok()
        .flatten()
}

/// The address to dial for a listener on `listen`: the wildcard is not one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn request(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.take(LARGEST).read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.lines().next()?.split_whitespace().nth(1)?;
    (status == "200").then(|| body.to_owned())
}
