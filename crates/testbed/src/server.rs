//! A server for labs: TCP lines and HTTP, UDP datagrams, all on one thread.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::{Error, Netns};

/// A client may not make the server keep more than this of one line or header block.
const LINE_MAX: usize = 64 * 1024;

/// Describes a server; see [`Server::new`].
#[derive(Clone, Debug)]
#[must_use = "a server listens only after start()"]
pub struct ServerBuilder {
    name: String,
    addresses: Vec<IpAddr>,
    tcp: Vec<u16>,
    udp: Vec<u16>,
}

impl ServerBuilder {
    /// Listens on a TCP port. A line comes back as it is; an HTTP request gets status 200 with
    /// `<name> <path>` as body.
    pub fn tcp(mut self, port: u16) -> Self {
        self.tcp.push(port);
        self
    }

    /// Listens on a UDP port and sends every datagram back.
    pub fn udp(mut self, port: u16) -> Self {
        self.udp.push(port);
        self
    }

    /// Binds these addresses instead of the IPv4 and the IPv6 wildcard.
    pub fn bind(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.addresses = addresses.into_iter().collect();
        self
    }

    /// Listens in `netns`; returns when all sockets are bound. Dropping the handle stops it.
    ///
    /// # Errors
    /// The namespace is gone, or an address or port cannot be bound.
    pub fn start(self, netns: &Netns) -> Result<Server, Error> {
        let (stop, stopped) = UnixStream::pair().map_err(Error::io("making a socket pair"))?;
        let counters = Arc::new(Counters::default());
        let (report, ready) = mpsc::channel();
        let name = self.name.clone();
        let thread = {
            let counters = Arc::clone(&counters);
            let netns = netns.clone();
            std::thread::Builder::new()
                .name(format!("server {name}"))
                .spawn(move || {
                    let sockets = netns.enter().and_then(|()| self.open());
                    match sockets {
                        Ok(sockets) => {
                            // The receiver waits for exactly this message.
                            let _ = report.send(Ok(()));
                            sockets.serve(&self.name, &counters, stopped.as_fd())
                        }
                        Err(error) => {
                            let _ = report.send(Err(error));
                            Ok(())
                        }
                    }
                })
                .map_err(Error::io("starting a thread"))?
        };
        ready
            .recv()
            .map_err(|_| Error::io(format!("server {name}"))(io::ErrorKind::BrokenPipe.into()))??;
        Ok(Server {
            name,
            counters,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    fn open(&self) -> Result<Sockets, Error> {
        let wildcards = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let addresses = if self.addresses.is_empty() {
            &wildcards[..]
        } else {
            &self.addresses
        };
        let open = |port: &u16, kind: SockType, transport: &str| {
            addresses
                .iter()
                .map(|&ip| {
                    bound(SocketAddr::new(ip, *port), kind).map_err(|source| Error::Listen {
                        server: self.name.clone(),
                        address: format!("{}/{transport}", SocketAddr::new(ip, *port)),
                        source,
                    })
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let mut sockets = Sockets::default();
        for port in &self.tcp {
            for fd in open(port, SockType::Stream, "tcp")? {
                // SAFETY: a listening TCP socket whose ownership passes on exactly once.
                let listener = unsafe { TcpListener::from_raw_fd(fd.into_raw_fd()) };
                sockets.listeners.push(listener);
            }
        }
        for port in &self.udp {
            for fd in open(port, SockType::Datagram, "udp")? {
                // SAFETY: a bound UDP socket whose ownership passes on exactly once.
                let socket = unsafe { UdpSocket::from_raw_fd(fd.into_raw_fd()) };
                sockets.datagrams.push(socket);
            }
        }
        Ok(sockets)
    }
}

/// A running server. Counts who reached it, so that a test can assert that nobody else did.
#[derive(Debug)]
pub struct Server {
    name: String,
    counters: Arc<Counters>,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    requests: AtomicU64,
    by_client: Mutex<BTreeMap<IpAddr, Contact>>,
}

/// What one client brought.
#[derive(Clone, Copy, Debug, Default)]
struct Contact {
    /// Connections and datagrams.
    count: u64,
    /// Payload bytes.
    bytes: u64,
}

impl Counters {
    fn reached_by(&self, client: IpAddr, count: u64, bytes: usize) {
        let mut by_client = self
            .by_client
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let contact = by_client.entry(client).or_default();
        contact.count += count;
        contact.bytes += bytes as u64;
    }
}

impl Server {
    /// Begins a server without sockets. The name appears in HTTP bodies.
    #[allow(
        clippy::new_ret_no_self,
        reason = "the server exists once it is started"
    )]
    pub fn new(name: &str) -> ServerBuilder {
        ServerBuilder {
            name: name.to_owned(),
            addresses: Vec::new(),
            tcp: Vec::new(),
            udp: Vec::new(),
        }
    }

    /// Name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// TCP connections accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.counters.connections.load(Ordering::Relaxed)
    }

    /// Lines, HTTP requests and datagrams answered.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.counters.requests.load(Ordering::Relaxed)
    }

    /// Connections and datagrams from one client address.
    #[must_use]
    pub fn reached_by(&self, client: IpAddr) -> u64 {
        self.contact(client).count
    }

    /// Payload bytes received from one client address.
    #[must_use]
    pub fn bytes_from(&self, client: IpAddr) -> u64 {
        self.contact(client).bytes
    }

    /// Every client address so far.
    #[must_use]
    pub fn clients(&self) -> Vec<IpAddr> {
        let by_client = &self.counters.by_client;
        let by_client = by_client.lock().unwrap_or_else(PoisonError::into_inner);
        by_client.keys().copied().collect()
    }

    fn contact(&self, client: IpAddr) -> Contact {
        let by_client = &self.counters.by_client;
        let by_client = by_client.lock().unwrap_or_else(PoisonError::into_inner);
        by_client.get(&client).copied().unwrap_or_default()
    }

    /// Stops listening and closes every connection.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic of the server thread has been printed; dropping must not panic again.
            let _ = thread.join();
        }
    }
}

/// Serves in the calling thread's namespace until the process ends: the body of a process that is
/// nothing but a server.
///
/// # Errors
/// A port cannot be bound, or polling fails.
pub fn serve(server: ServerBuilder) -> Result<(), Error> {
    let (_never, stopped) = UnixStream::pair().map_err(Error::io("making a socket pair"))?;
    server
        .open()?
        .serve(&server.name, &Counters::default(), stopped.as_fd())
        .map_err(Error::io(format!("server {}", server.name)))
}

fn bound(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, kind, flags, None)?;
    if kind == SockType::Stream {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::MAXCONN)?;
    }
    Ok(fd)
}

#[derive(Debug, Default)]
struct Sockets {
    listeners: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
}

struct Client {
    stream: TcpStream,
    peer: IpAddr,
    received: Vec<u8>,
}

impl Sockets {
    fn serve(&self, name: &str, counters: &Counters, stopped: BorrowedFd<'_>) -> io::Result<()> {
        let mut clients: Vec<Client> = Vec::new();
        loop {
            let ready: Vec<bool> = {
                let fds = std::iter::once(stopped)
                    .chain(self.listeners.iter().map(AsFd::as_fd))
                    .chain(self.datagrams.iter().map(AsFd::as_fd))
                    .chain(clients.iter().map(|client| client.stream.as_fd()));
                let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) => {}
                    Err(Errno::EINTR) => continue,
                    Err(error) => return Err(error.into()),
                }
                fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()
            };
            let (stop, ready) = ready.split_first().expect("the first descriptor is there");
            if *stop {
                return Ok(());
            }
            let (listening, ready) = ready.split_at(self.listeners.len());
            let (datagram, connected) = ready.split_at(self.datagrams.len());
            let mut connected = connected.iter();
            clients.retain_mut(|client| {
                !connected.next().is_some_and(|ready| *ready) || client.answer(name, counters)
            });
            for (socket, _) in self.datagrams.iter().zip(datagram).filter(|(_, r)| **r) {
                echo_datagram(socket, counters);
            }
            for (listener, _) in self.listeners.iter().zip(listening).filter(|(_, r)| **r) {
                // The client may have gone again; that is its business.
                if let Ok((stream, peer)) = listener.accept() {
                    counters.connections.fetch_add(1, Ordering::Relaxed);
                    counters.reached_by(peer.ip(), 1, 0);
                    if stream.set_nonblocking(true).is_ok() {
                        let _ = stream.set_nodelay(true);
                        clients.push(Client {
                            stream,
                            peer: peer.ip(),
                            received: Vec::new(),
                        });
                    }
                }
            }
        }
    }
}

fn echo_datagram(socket: &UdpSocket, counters: &Counters) {
    let mut buffer = [0; 65535];
    // An earlier reply may have met an ICMP error, which recv reports once.
    if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        counters.reached_by(peer.ip(), 1, length);
        if socket.send_to(&buffer[..length], peer).is_ok() {
            counters.requests.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Client {
    /// Reads what is there and answers what is complete; false when the connection is over.
    fn answer(&mut self, name: &str, counters: &Counters) -> bool {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => {
                counters.reached_by(self.peer, 0, length);
                self.received.extend_from_slice(&buffer[..length]);
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
        while let Some((answer, open)) = self.next_answer(name) {
            counters.requests.fetch_add(1, Ordering::Relaxed);
            if self.stream.write_all(&answer).is_err() || !open {
                return false;
            }
        }
        self.received.len() <= LINE_MAX
    }

    /// Takes one complete line or HTTP request off the buffer. The flag says whether the
    /// connection stays open.
    fn next_answer(&mut self, name: &str) -> Option<(Vec<u8>, bool)> {
        let line_end = self.received.iter().position(|&byte| byte == b'\n')? + 1;
        let line = String::from_utf8_lossy(&self.received[..line_end]).into_owned();
        let Some(path) = http_path(&line) else {
            return Some((self.received.drain(..line_end).collect(), true));
        };
        let head_end = find(&self.received, b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&self.received[..head_end]).to_ascii_lowercase();
        self.received.drain(..head_end);
        let open = !head.contains("\r\nconnection: close\r\n");
        let body = format!("{name} {path}\n");
        let connection = if open { "keep-alive" } else { "close" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
             Connection: {connection}\r\n\r\n{body}",
            body.len()
        );
        Some((answer.into_bytes(), open))
    }
}

fn http_path(line: &str) -> Option<&str> {
    let mut words = line.trim_end().split(' ');
    let (_method, path, version) = (words.next()?, words.next()?, words.next()?);
    version.starts_with("HTTP/1.").then_some(path)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
