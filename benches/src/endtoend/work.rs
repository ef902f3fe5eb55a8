//! The work that is timed: both ends in one thread, sockets in two namespaces.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use serde::Serialize;
use testbed::Workload;

use super::firewall::{TCP_PORT, UDP_PORT};

/// Longest wait for a packet; more is a loss and ends the bench.
const PATIENCE: Duration = Duration::from_secs(5);
/// A port no policy allows.
const CLOSED_PORT: u16 = UDP_PORT + 1;
/// 18 bytes in UDP, IPv4 and Ethernet make the smallest frame, 60 bytes without its check sequence.
const SMALL: usize = 18;
/// Datagrams on the way at a time; the socket buffer holds several times as many.
const BURST: u32 = 32;
/// Request and response of the TCP exchanges, in bytes.
const EXCHANGE: usize = 64;

/// What is done, in units whose CPU time is the figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// UDP datagrams in 60-byte frames; a unit is a packet.
    SmallUdp,
    /// Requests and responses on one TCP connection; a unit is an exchange.
    RequestResponse,
    /// Connect, request, response, close; a unit is a connection.
    ConnectRequestResponse,
    /// One TCP stream; a unit is a MiB.
    Stream,
}

impl Work {
    /// All of it.
    pub const ALL: [Self; 4] = [
        Self::SmallUdp,
        Self::RequestResponse,
        Self::ConnectRequestResponse,
        Self::Stream,
    ];

    /// Heading of the column.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SmallUdp => "UDP 60 B",
            Self::RequestResponse => "TCP RR",
            Self::ConnectRequestResponse => "TCP CRR",
            Self::Stream => "TCP stream",
        }
    }

    /// What one unit is.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::SmallUdp => "packet",
            Self::RequestResponse => "exchange",
            Self::ConnectRequestResponse => "connection",
            Self::Stream => "MiB",
        }
    }

    /// Units of one sample: some 10 to 50 ms.
    pub(super) fn units(self) -> u32 {
        match self {
            Self::SmallUdp => 8000,
            Self::RequestResponse => 1500,
            Self::ConnectRequestResponse => 400,
            Self::Stream => 64,
        }
    }
}

/// The sockets between a client and a server.
#[derive(Debug)]
pub(super) struct Wires {
    server: SocketAddrV4,
    udp: (UdpSocket, UdpSocket),
    listener: TcpListener,
    exchange: (TcpStream, TcpStream),
    stream: (TcpStream, TcpStream),
    buffer: Vec<u8>,
}

impl Wires {
    /// Opens them; connections are made through the firewall under test.
    pub(super) fn open(client: &Workload, server: &Workload) -> anyhow::Result<Self> {
        let address = server.v4().expect("every workload of the bench has one");
        let (receiver, listener) = server.run(|| -> io::Result<_> {
            let receiver = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, UDP_PORT))?;
            receiver.set_read_timeout(Some(PATIENCE))?;
            Ok((
                receiver,
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, TCP_PORT))?,
            ))
        })??;
        let target = SocketAddrV4::new(address, TCP_PORT);
        let (sender, exchange, stream) = client.run(|| -> io::Result<_> {
            let sender = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            sender.connect((address, UDP_PORT))?;
            sender.set_read_timeout(Some(PATIENCE))?;
            // One answer, as services give: without any, conntrack takes every packet for a new
            // flow and every list is walked for each.
            let mut datagram = [0; SMALL];
            sender.send(&datagram)?;
            let (_, from) = receiver.recv_from(&mut datagram)?;
            receiver.send_to(&datagram, from)?;
            sender.recv(&mut datagram)?;
            let exchange = connect(target, &listener)?;
            let stream = connect(target, &listener)?;
            stream.0.set_nonblocking(true)?;
            stream.1.set_nonblocking(true)?;
            Ok((sender, exchange, stream))
        })??;
        Ok(Self {
            server: target,
            udp: (sender, receiver),
            listener,
            exchange,
            stream,
            buffer: vec![0; 1 << 18],
        })
    }

    /// Does `units` of the work. The calling thread must be in the client's namespace.
    pub(super) fn run(&mut self, work: Work, units: u32) -> io::Result<()> {
        match work {
            Work::SmallUdp => self.small_udp(units),
            Work::RequestResponse => {
                (0..units).try_for_each(|_| exchange(&mut self.exchange.0, &mut self.exchange.1))
            }
            Work::ConnectRequestResponse => (0..units).try_for_each(|_| {
                let (mut client, mut server) = connect(self.server, &self.listener)?;
                exchange(&mut client, &mut server)
            }),
            Work::Stream => self.stream(u64::from(units) << 20),
        }
    }

    fn small_udp(&self, count: u32) -> io::Result<()> {
        let (sender, receiver) = &self.udp;
        let mut datagram = [0; SMALL];
        let mut left = count;
        while left > 0 {
            let burst = left.min(BURST);
            for _ in 0..burst {
                sender.send(&datagram)?;
            }
            for _ in 0..burst {
                receiver.recv(&mut datagram)?;
            }
            left -= burst;
        }
        Ok(())
    }

    fn stream(&mut self, total: u64) -> io::Result<()> {
        let (sender, receiver) = (&mut self.stream.0, &mut self.stream.1);
        let (mut sent, mut received) = (0, 0);
        while received < total {
            let before = (sent, received);
            while sent < total {
                let chunk = self.buffer.len().min((total - sent) as usize);
                match sender.write(&self.buffer[..chunk]) {
                    Ok(count) => sent += count as u64,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            while received < total {
                match receiver.read(&mut self.buffer) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(count) => received += count as u64,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if before == (sent, received) {
                wait_readable(receiver)?;
            }
        }
        Ok(())
    }
}

fn connect(target: SocketAddrV4, listener: &TcpListener) -> io::Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(target)?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
    let mut message = [0; EXCHANGE];
    client.write_all(&message)?;
    server.read_exact(&mut message)?;
    server.write_all(&message)?;
    client.read_exact(&mut message)
}

/// The kernel put the packets off to `ksoftirqd`; lets it work.
fn wait_readable(socket: &TcpStream) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one writable pollfd, and its count.
    match unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) } {
        0 => Err(ErrorKind::TimedOut.into()),
        count if count < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether a datagram reaches a port that no rule allows: a firewall that does nothing is fast.
pub(super) fn reaches_closed_port(client: &Workload, server: &Workload) -> anyhow::Result<bool> {
    const SILENCE: Duration = Duration::from_millis(100);
    let address = server.v4().expect("every workload of the bench has one");
    let receiver = server.run(|| -> io::Result<_> {
        let receiver = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLOSED_PORT))?;
        receiver.set_read_timeout(Some(SILENCE))?;
        Ok(receiver)
    })??;
    client.run(|| {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"?", (address, CLOSED_PORT))
    })??;
    match receiver.recv(&mut [0; 8]) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
