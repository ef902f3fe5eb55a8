//! Links, routes and namespace ids of the namespace the daemon runs in, and the scan that finds
//! what is at the other end of every veth.
//!
//! A veth in our namespace names its peer by index and by *our* id of the peer's namespace
//! (`IFLA_LINK`, `IFLA_LINK_NETNSID`). `RTM_GETNSID` gives our id of a candidate namespace, so a
//! namespace is entered only when one of our veths leads into it, and a veth whose peer is
//! elsewhere cannot be mistaken.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::netns::{self, Candidate, InnerInterface, Netns};

/// Room for bursts of notifications (hundreds of containers starting at once), in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What the kernel would not tell.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// A dump failed.
    #[error("cannot read {what} from the kernel: {source}")]
    Dump {
        /// What was to be read.
        what: &'static str,
        /// Cause.
        source: rtnetlink::Error,
    },
    /// `/proc` or the interface addresses cannot be read.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What was to be read.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
}

/// A link of our namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// For a veth whose peer is in another namespace: our id of that namespace and the peer's
    /// index there.
    pub peer: Option<(i32, u32)>,
}

/// One end in our namespace and the other in a workload's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethPair {
    /// Our end.
    pub host: HostLink,
    /// The workload's end; `None` when its namespace could not be read.
    pub inner: Option<InnerInterface>,
}

/// A namespace with at least one veth into ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetnsView {
    /// Inode.
    pub inode: u64,
    /// Where to open it.
    pub path: PathBuf,
    /// Name under `/run/netns`.
    pub name: Option<String>,
    /// Command name of its oldest process.
    pub command: Option<String>,
    /// Its process is in a container runtime's control group.
    pub container: bool,
    /// The veths between it and us, by our index.
    pub pairs: Vec<VethPair>,
    /// Why it could not be read, if so.
    pub error: Option<String>,
}

/// What the kernel shows at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelView {
    /// Inode of our namespace.
    pub own_inode: u64,
    /// Our links by name.
    pub links: BTreeMap<String, HostLink>,
    /// Namespaces with a veth into ours, by inode.
    pub netnses: BTreeMap<u64, NetnsView>,
    /// Inode behind each of the paths asked for; those that do not exist are missing.
    pub paths: BTreeMap<PathBuf, u64>,
    /// Indices of our links that carry a default route: the way out, never a workload.
    pub uplinks: BTreeSet<u32>,
    /// Our own addresses, without loopback.
    pub host_addresses: BTreeSet<IpAddr>,
}

impl KernelView {
    /// The pair whose host end has this name.
    #[must_use]
    pub fn pair_of(&self, link: &str) -> Option<(&NetnsView, &VethPair)> {
        self.netnses.values().find_map(|netns| {
            let pair = netns.pairs.iter().find(|pair| pair.host.name == link)?;
            Some((netns, pair))
        })
    }
}

/// Connection to the kernel: requests and the stream of changes.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    /// Holds one token when something changed; closed when the socket is lost.
    changes: mpsc::Receiver<()>,
    /// Drives both sockets and reads the notifications; aborted on drop.
    _connections: JoinSet<()>,
}

impl Netlink {
    /// Opens the sockets in the calling thread's namespace and subscribes to links, addresses,
    /// default routes and namespace ids, here and in the namespaces our veths lead into.
    ///
    /// # Errors
    /// No socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let (mut events, _, mut messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Nsid,
        ])
        .map_err(NetlinkError::Socket)?;
        let socket = events.socket_mut().socket_mut();
        // Addresses inside a workload's namespace change without any event in ours.
        if let Err(error) = socket.set_listen_all_namespaces(true) {
            tracing::warn!(
                %error,
                "changes inside workloads are seen only once a second; CAP_NET_BROADCAST is missing"
            );
        }
        // Bounded by net.core.rmem_max; an overrun is an event like any other.
        let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER);
        let (requests, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        let mut connections = JoinSet::new();
        connections.spawn(events);
        connections.spawn(requests);
        let (tell, changes) = mpsc::channel(1);
        connections.spawn(async move {
            while messages.next().await.is_some() {
                // Full means that a token waits already; one is as good as many.
                let _ = tell.try_send(());
            }
        });
        Ok(Self {
            handle,
            changes,
            _connections: connections,
        })
    }

    /// Waits until something changed; false when the socket is lost. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        self.changes.recv().await.is_some()
    }

    /// Reads everything, `extra` naming further paths of namespaces to look into.
    ///
    /// # Errors
    /// Our own namespace cannot be read. What is wrong with another one is in its view.
    pub async fn scan(&mut self, extra: Vec<PathBuf>) -> Result<KernelView, NetlinkError> {
        let links = self.links().await?;
        let uplinks = self.uplinks().await?;
        let (candidates, paths) = blocking(move || {
            let paths = inodes(&extra);
            netns::candidates(&extra).map(|candidates| (candidates, paths))
        })
        .await
        .map_err(|source| NetlinkError::Read {
            what: "the list of namespaces",
            source,
        })?;
        let mut found = Vec::new();
        let wanted: BTreeSet<i32> = links.iter().filter_map(|l| Some(l.peer?.0)).collect();
        if !wanted.is_empty() {
            for (inode, candidate) in candidates {
                // Gone meanwhile, or another namespace by now: the event that says so follows.
                let Ok(netns) = Netns::open(&candidate.path) else {
                    continue;
                };
                if netns.inode() != inode {
                    continue;
                }
                if let Some(id) = self.nsid(&netns).await?.filter(|id| wanted.contains(id)) {
                    let ours = links.iter().filter(|l| l.peer.is_some_and(|p| p.0 == id));
                    found.push((netns, candidate, ours.cloned().collect::<Vec<_>>()));
                }
            }
        }
        let (own_inode, host_addresses, views) =
            blocking(move || read_all(found))
                .await
                .map_err(|source| NetlinkError::Read {
                    what: "the addresses of this host",
                    source,
                })?;
        Ok(KernelView {
            own_inode,
            links: links.into_iter().map(|l| (l.name.clone(), l)).collect(),
            netnses: views.into_iter().map(|view| (view.inode, view)).collect(),
            paths,
            uplinks,
            host_addresses,
        })
    }

    async fn links(&self) -> Result<Vec<HostLink>, NetlinkError> {
        let mut links = Vec::new();
        let mut dump = self.handle.link().get().execute();
        while let Some(message) = dump.try_next().await.map_err(|source| NetlinkError::Dump {
            what: "links",
            source,
        })? {
            links.extend(host_link(&message));
        }
        Ok(links)
    }

    async fn uplinks(&self) -> Result<BTreeSet<u32>, NetlinkError> {
        let mut uplinks = BTreeSet::new();
        for query in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let mut dump = self.handle.route().get(query).execute();
            while let Some(route) = dump.try_next().await.map_err(|source| NetlinkError::Dump {
                what: "routes",
                source,
            })? {
                uplinks.extend(default_route_links(&route));
            }
        }
        Ok(uplinks)
    }

    /// Our id of a namespace; `None` when none of our links leads there.
    async fn nsid(&mut self, netns: &Netns) -> Result<Option<i32>, NetlinkError> {
        let fd = u32::try_from(netns.file().as_raw_fd()).expect("descriptors are not negative");
        let mut request = NsidMessage::default();
        request.attributes = vec![NsidAttribute::Fd(fd)];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(request));
        request.header.flags = NLM_F_REQUEST;
        let error = |source| NetlinkError::Dump {
            what: "namespace ids",
            source,
        };
        let mut answers = self.handle.request(request).map_err(error)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                    return Ok(answer
                        .attributes
                        .iter()
                        .find_map(|attribute| match attribute {
                            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                            _ => None,
                        }));
                }
                NetlinkPayload::Error(source) => {
                    return Err(error(rtnetlink::Error::NetlinkError(source)));
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

/// Name and kind of every interface of the calling thread's namespace that has a kind: `veth`,
/// `bridge`, `macvlan` and so on. Physical interfaces have none.
///
/// # Errors
/// No netlink socket, or the dump fails.
pub async fn links_by_kind() -> io::Result<Vec<(String, String)>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut links = Vec::new();
    let mut dump = handle.link().get().execute();
    while let Some(message) = dump.try_next().await.map_err(io::Error::other)? {
        links.extend(name_and_kind(&message));
    }
    connection.abort();
    Ok(links)
}

fn name_and_kind(message: &LinkMessage) -> Option<(String, String)> {
    let mut name = None;
    let mut kind = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some((name?, kind?))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn inodes(paths: &[PathBuf]) -> BTreeMap<PathBuf, u64> {
    let inode = |path: &PathBuf| Some((path.clone(), Netns::open(path).ok()?.inode()));
    paths.iter().filter_map(inode).collect()
}

type Found = Vec<(Netns, Candidate, Vec<HostLink>)>;
type ReadAll = (u64, BTreeSet<IpAddr>, Vec<NetnsView>);

/// Reads our own addresses, then visits one namespace after the other.
fn read_all(found: Found) -> io::Result<ReadAll> {
    let own = netns::own_inode()?;
    let host_addresses = netns::interfaces()?
        .into_values()
        .flat_map(|interface| interface.addresses)
        .collect();
    let visit = || found.into_iter().map(view).collect();
    let views = std::thread::scope(|scope| {
        let visitor = scope.spawn(visit);
        visitor
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    Ok((own, host_addresses, views))
}

/// Enters a namespace on the calling thread and reads the far ends of `links`.
fn view((netns, candidate, mut links): (Netns, Candidate, Vec<HostLink>)) -> NetnsView {
    let interfaces = netns
        .enter()
        .map_err(|error| error.to_string())
        .and_then(|()| netns::interfaces().map_err(|error| error.to_string()));
    let (mut interfaces, error) = match interfaces {
        Ok(interfaces) => (interfaces, None),
        Err(error) => (BTreeMap::new(), Some(error)),
    };
    links.sort_by_key(|link| link.ifindex);
    let pair = |host: HostLink| VethPair {
        inner: host.peer.and_then(|(_, index)| interfaces.remove(&index)),
        host,
    };
    NetnsView {
        inode: netns.inode(),
        command: candidate.pid.and_then(netns::command_name),
        container: candidate.pid.is_some_and(netns::in_container_cgroup),
        path: candidate.path,
        name: candidate.name,
        pairs: links.into_iter().map(pair).collect(),
        error,
    }
}

fn host_link(message: &LinkMessage) -> Option<HostLink> {
    let mut link = HostLink {
        ifindex: message.header.index,
        name: String::new(),
        peer: None,
    };
    let (mut veth, mut peer_index, mut peer_netns) = (false, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Link(index) => peer_index = Some(*index),
            LinkAttribute::LinkNetNsId(id) => peer_netns = Some(*id),
            LinkAttribute::LinkInfo(infos) => {
                veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            _ => {}
        }
    }
    if veth {
        link.peer = peer_netns.zip(peer_index);
    }
    (!link.name.is_empty()).then_some(link)
}

fn default_route_links(route: &RouteMessage) -> Vec<u32> {
    // Routes of other tables belong to VRFs and policy routing, which say nothing about "out".
    const MAIN: u8 = 254;
    if route.header.destination_prefix_length != 0 || route.header.table != MAIN {
        return Vec::new();
    }
    let mut links = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::MultiPath(hops) => {
                links.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    links
}

/// Index of a link in the calling thread's namespace.
#[must_use]
pub fn ifindex_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// Name of a link in the calling thread's namespace.
#[must_use]
pub fn name_of(ifindex: u32) -> Option<String> {
    nix::net::if_::if_indextoname(ifindex)
        .ok()?
        .into_string()
        .ok()
}
