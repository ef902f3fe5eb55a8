//! Clients: one probe, one typed outcome. Everything acts in the calling thread's namespace, so
//! wrap calls in [`crate::Netns::run`] or [`crate::Workload::run`].

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt,
    socket, sockopt,
};

pub use crate::ping::ping;

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The other side answered with the expected data (TCP, UDP, ICMP echo).
    Replied,
    /// TCP: the handshake was completed, but no expected data came back.
    Connected,
    /// A reset on connecting, or ICMP port unreachable: the host is reached, nobody listens.
    Refused,
    /// Silence until the timeout.
    TimedOut,
    /// No route, or an ICMP error other than port unreachable.
    Unreachable,
    /// TCP: established, then closed or reset by the other side.
    Closed,
    /// Something local: permission, address in use, a bad address.
    Failed(String),
}

impl Outcome {
    /// Whether any packet came back from the destination, data or refusal.
    #[must_use]
    pub fn reached(&self) -> bool {
        matches!(
            self,
            Self::Replied | Self::Connected | Self::Refused | Self::Closed
        )
    }

    pub(crate) fn from_error(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::Refused,
            Some(
                Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::EACCES
                | Errno::ENOPROTOOPT
                | Errno::EPROTO,
            ) => Self::Unreachable,
            Some(Errno::ETIMEDOUT | Errno::EAGAIN) => Self::TimedOut,
            Some(Errno::ECONNRESET | Errno::EPIPE) => Self::Closed,
            _ => match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut,
                io::ErrorKind::UnexpectedEof => Self::Closed,
                _ => Self::Failed(error.to_string()),
            },
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replied => f.write_str("replied"),
            Self::Connected => f.write_str("connected"),
            Self::Refused => f.write_str("refused"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Closed => f.write_str("closed"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// TCP: connects, sends a line and expects it back, as [`crate::Server`] does.
pub fn tcp(to: impl ToSocketAddrs, timeout: Duration) -> Outcome {
    match Connection::open(to, timeout) {
        Ok(mut connection) => match connection.exchange("probe", timeout) {
            Outcome::TimedOut => Outcome::Connected,
            other => other,
        },
        Err(outcome) => outcome,
    }
}

/// TCP: the handshake only, `Connected` on success.
pub fn tcp_connect(to: impl ToSocketAddrs, timeout: Duration) -> Outcome {
    match Connection::open(to, timeout) {
        Ok(_) => Outcome::Connected,
        Err(outcome) => outcome,
    }
}

/// UDP: sends one datagram and expects it back. `Refused` is an ICMP port unreachable.
pub fn udp(to: impl ToSocketAddrs, timeout: Duration) -> Outcome {
    udp_from(0, to, timeout)
}

/// As [`udp`], from a given source port; 0 takes any.
pub fn udp_from(source_port: u16, to: impl ToSocketAddrs, timeout: Duration) -> Outcome {
    let attempt = || -> io::Result<Outcome> {
        let to = first(to)?;
        let socket = UdpSocket::bind(wildcard(to, source_port))?;
        socket.connect(to)?;
        let message = b"probe\n";
        socket.send(message)?;
        socket.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(if &buffer[..length] == message {
            Outcome::Replied
        } else {
            Outcome::Failed("another datagram came back".to_owned())
        })
    };
    attempt().unwrap_or_else(|error| Outcome::from_error(&error))
}

/// HTTP/1.1: `GET path`, `Replied` on status 200. Returns the outcome and the body.
pub fn http_get(to: impl ToSocketAddrs, path: &str, timeout: Duration) -> (Outcome, String) {
    let mut connection = match Connection::open(to, timeout) {
        Ok(connection) => connection,
        Err(outcome) => return (outcome, String::new()),
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    let mut attempt = || -> io::Result<String> {
        connection.stream.write_all(request.as_bytes())?;
        connection.stream.set_read_timeout(Some(timeout))?;
        let mut answer = String::new();
        connection.stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match attempt() {
        Ok(answer) => {
            let body = answer
                .split_once("\r\n\r\n")
                .map_or("", |(_, body)| body)
                .to_owned();
            let ok = answer.starts_with("HTTP/1.1 200 ");
            (
                if ok {
                    Outcome::Replied
                } else {
                    Outcome::Closed
                },
                body,
            )
        }
        Err(error) => match Outcome::from_error(&error) {
            Outcome::TimedOut => (Outcome::Connected, String::new()),
            other => (other, String::new()),
        },
    }
}

/// TCP handshakes with many ports at once, each with the same deadline. One outcome per port, in
/// the order given.
pub fn port_scan(host: IpAddr, ports: &[u16], timeout: Duration) -> Vec<(u16, Outcome)> {
    let deadline = Instant::now() + timeout;
    let mut results = Vec::with_capacity(ports.len());
    // Bounded by the default limit of open files.
    for chunk in ports.chunks(512) {
        let begun: Vec<_> = chunk
            .iter()
            .map(|&port| (port, begin_connect(SocketAddr::new(host, port), 0)))
            .collect();
        for (port, begun) in begun {
            let outcome = match begun.and_then(|fd| finish_connect(fd, deadline)) {
                Ok(_) => Outcome::Connected,
                Err(error) => Outcome::from_error(&error),
            };
            results.push((port, outcome));
        }
    }
    results
}

/// An established TCP connection, used step by step while policy changes around it.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects from any port.
    ///
    /// # Errors
    /// The outcome when there is no connection.
    pub fn open(to: impl ToSocketAddrs, timeout: Duration) -> Result<Self, Outcome> {
        Self::open_from(0, to, timeout)
    }

    /// Connects from a given source port; 0 takes any.
    ///
    /// # Errors
    /// The outcome when there is no connection.
    pub fn open_from(
        source_port: u16,
        to: impl ToSocketAddrs,
        timeout: Duration,
    ) -> Result<Self, Outcome> {
        let deadline = Instant::now() + timeout;
        first(to)
            .and_then(|to| begin_connect(to, source_port))
            .and_then(|fd| finish_connect(fd, deadline))
            .map(|stream| Self { stream })
            .map_err(|error| Outcome::from_error(&error))
    }

    /// Address and port of this side.
    ///
    /// # Panics
    /// Never on an open connection.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.stream
            .local_addr()
            .expect("a connected socket has a local address")
    }

    /// Sends a line. `Connected` when the kernel took it, which says nothing about delivery.
    pub fn send(&mut self, line: &str) -> Outcome {
        match self.stream.write_all(format!("{line}\n").as_bytes()) {
            Ok(()) => Outcome::Connected,
            Err(error) => Outcome::from_error(&error),
        }
    }

    /// Waits for a line: `Replied` when it comes, `TimedOut` when not in time.
    pub fn expect(&mut self, line: &str, timeout: Duration) -> Outcome {
        let mut attempt = || -> io::Result<Outcome> {
            let expected = format!("{line}\n");
            let deadline = Instant::now() + timeout;
            let mut received = vec![0; expected.len()];
            let mut length = 0;
            while length < received.len() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(Outcome::TimedOut);
                }
                self.stream.set_read_timeout(Some(left))?;
                match self.stream.read(&mut received[length..])? {
                    0 => return Ok(Outcome::Closed),
                    more => length += more,
                }
            }
            Ok(if received == expected.as_bytes() {
                Outcome::Replied
            } else {
                Outcome::Failed("another line came back".to_owned())
            })
        };
        attempt().unwrap_or_else(|error| Outcome::from_error(&error))
    }

    /// Sends a line and expects it back.
    pub fn exchange(&mut self, line: &str, timeout: Duration) -> Outcome {
        match self.send(line) {
            Outcome::Connected => self.expect(line, timeout),
            other => other,
        }
    }

    /// Closes with a reset instead of a handshake.
    pub fn abort(self) {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // Refused only on a socket without TCP, which this is not.
        let _ = setsockopt(&self.stream, sockopt::Linger, &linger);
    }
}

pub(crate) fn first(to: impl ToSocketAddrs) -> io::Result<SocketAddr> {
    to.to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no address"))
}

fn wildcard(to: SocketAddr, port: u16) -> SocketAddr {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, port)
}

fn begin_connect(to: SocketAddr, source_port: u16) -> io::Result<OwnedFd> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, None)?;
    if source_port != 0 {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        let local = SockaddrStorage::from(wildcard(to, source_port));
        bind(fd.as_raw_fd(), &local)?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(error) => Err(error.into()),
    }
}

fn finish_connect(fd: OwnedFd, deadline: Instant) -> io::Result<TcpStream> {
    if !wait_ready(&fd, PollFlags::POLLOUT, deadline)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match getsockopt(&fd, sockopt::SocketError)? {
        0 => {}
        code => return Err(io::Error::from_raw_os_error(code)),
    }
    // SAFETY: the descriptor is a TCP socket and ownership passes on exactly once.
    let stream = unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) };
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Waits until the descriptor is ready for `events`; false at the deadline.
pub(crate) fn wait_ready(fd: &impl AsFd, events: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last wait does not spin.
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let timeout = PollTimeout::try_from(millis).expect("not negative");
        match poll(&mut [PollFd::new(fd.as_fd(), events)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
