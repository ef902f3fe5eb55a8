//! Workloads of a lab: their interfaces, addresses and routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::lab::{INTERFACE_NAME_MAX, address_line, no_dad};
use crate::{Bridge, Error, Lab, Netns, ip_batch};

/// Next hop of routed workloads, an address of every routed host-side veth.
const ROUTED_GATEWAY_V4: &str = "169.254.1.1";
const ROUTED_GATEWAY_V6: &str = "fe80::1";

/// An interface address with its prefix length, written `10.0.0.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Address of the interface itself.
    pub address: IpAddr,
    /// Length of the network prefix in bits.
    pub prefix_len: u8,
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl FromStr for InterfaceAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (address, prefix_len) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let prefix_len: u8 = prefix_len.parse().ok()?;
            let max = if address.is_ipv4() { 32 } else { 128 };
            (prefix_len <= max).then_some(Self {
                address,
                prefix_len,
            })
        };
        parse().ok_or_else(|| Error::Address {
            text: text.to_owned(),
            expected: "write address/prefix, such as 10.0.0.1/24 or fd00::1/64",
        })
    }
}

/// One interface of a workload.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Name of the host-side veth.
    pub host_name: String,
    /// Index of the host-side veth.
    pub host_ifindex: u32,
    /// Name inside the workload's namespace.
    pub inner_name: String,
    /// MAC address of the workload's side.
    pub mac: [u8; 6],
    /// IPv4 address, if any.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address, if any (besides the link-local one).
    pub v6: Option<Ipv6Addr>,
}

/// A workload: a namespace and its interfaces. Stays until its lab goes or removes it.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Name given to [`Lab::workload`].
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its interfaces, `eth0` first.
    pub interfaces: Vec<Interface>,
}

impl Workload {
    /// Runs `work` on a thread inside the workload, see [`Netns::run`].
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        self.netns.run(work)
    }

    /// First IPv4 address.
    #[must_use]
    pub fn v4(&self) -> Option<Ipv4Addr> {
        self.interfaces.iter().find_map(|interface| interface.v4)
    }

    /// First IPv6 address.
    #[must_use]
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.interfaces.iter().find_map(|interface| interface.v6)
    }

    /// All addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.interfaces
            .iter()
            .flat_map(|i| [i.v4.map(IpAddr::V4), i.v6.map(IpAddr::V6)])
            .flatten()
            .collect()
    }
}

#[derive(Debug)]
struct Link {
    bridge: Option<Bridge>,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    host_name: Option<String>,
}

/// Describes a workload; see [`Lab::workload`].
#[derive(Debug)]
#[must_use = "a workload exists only after build()"]
pub struct WorkloadBuilder<'lab> {
    lab: &'lab Lab,
    name: String,
    links: Vec<Link>,
}

impl<'lab> WorkloadBuilder<'lab> {
    pub(crate) fn new(lab: &'lab Lab, name: &str) -> Self {
        Self {
            lab,
            name: name.to_owned(),
            links: Vec::new(),
        }
    }

    /// Adds an interface on a bridge. The first is `eth0` and carries the default routes.
    pub fn on(self, bridge: &Bridge) -> Self {
        self.link(Some(bridge.clone()))
    }

    /// Adds an interface without a bridge: the host routes to its addresses over the veth.
    pub fn routed(self) -> Self {
        self.link(None)
    }

    /// IPv4 address of the interface added last, e.g. `10.0.0.2`.
    ///
    /// # Panics
    /// On a bad address, or before an interface.
    pub fn v4(mut self, address: &str) -> Self {
        let address = address.parse().expect("an IPv4 address such as 10.0.0.2");
        self.last().v4 = Some(address);
        self
    }

    /// IPv6 address of the interface added last, e.g. `fd00::2`.
    ///
    /// # Panics
    /// On a bad address, or before an interface.
    pub fn v6(mut self, address: &str) -> Self {
        let address = address.parse().expect("an IPv6 address such as fd00::2");
        self.last().v6 = Some(address);
        self
    }

    /// Name of the host-side veth of the interface added last; by default `v-<workload>`, cut to
    /// fit, with the number of the interface from the second on.
    ///
    /// # Panics
    /// Before an interface.
    pub fn host_name(mut self, name: &str) -> Self {
        self.last().host_name = Some(name.to_owned());
        self
    }

    fn link(mut self, bridge: Option<Bridge>) -> Self {
        self.links.push(Link {
            bridge,
            v4: None,
            v6: None,
            host_name: None,
        });
        self
    }

    fn last(&mut self) -> &mut Link {
        self.links
            .last_mut()
            .expect("an interface, by on() or routed(), comes before its addresses")
    }

    /// Makes it. Addresses are usable at once: duplicate address detection is off.
    ///
    /// # Errors
    /// A name is taken, or `ip` refuses.
    pub fn build(self) -> Result<Workload, Error> {
        let lab = self.lab;
        let netns = lab.netns(&self.name)?;
        for scope in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            netns.sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        }
        let mut names = Vec::new();
        for (number, link) in self.links.iter().enumerate() {
            let inner = format!("eth{number}");
            let host = lab.host_link_name(&link.host_name.clone().unwrap_or_else(|| {
                let suffix = if number == 0 {
                    String::new()
                } else {
                    number.to_string()
                };
                let room = INTERFACE_NAME_MAX - 2 - suffix.len();
                format!(
                    "v-{}{suffix}",
                    self.name.chars().take(room).collect::<String>()
                )
            }))?;
            // The host side comes up last, so that whoever watches it finds the rest in place.
            let path = netns.path().display();
            ip_batch(
                lab.host(),
                &[format!(
                    "link add name {host} type veth peer name {inner} netns {path}"
                )],
            )?;
            no_dad(lab.host(), &host)?;
            ip_batch(&netns, &inner_lines(&inner, link, number == 0))?;
            ip_batch(lab.host(), &host_lines(&host, link))?;
            names.push((host, inner));
        }
        let mut interfaces = Vec::new();
        for ((host_name, inner_name), link) in names.into_iter().zip(self.links) {
            interfaces.push(Interface {
                host_ifindex: lab.host().run(|| ifindex(&host_name))??,
                mac: netns.run(|| mac(&inner_name))??,
                host_name,
                inner_name,
                v4: link.v4,
                v6: link.v6,
            });
        }
        Ok(Workload {
            name: self.name,
            netns,
            interfaces,
        })
    }
}

fn inner_lines(inner: &str, link: &Link, default: bool) -> Vec<String> {
    let mut lines = vec![format!("link set dev {inner} up")];
    let families: [(Option<IpAddr>, Option<InterfaceAddress>, u8, &str); 2] = [
        (
            link.v4.map(IpAddr::V4),
            link.bridge.as_ref().and_then(|bridge| bridge.v4),
            32,
            ROUTED_GATEWAY_V4,
        ),
        (
            link.v6.map(IpAddr::V6),
            link.bridge.as_ref().and_then(|bridge| bridge.v6),
            128,
            ROUTED_GATEWAY_V6,
        ),
    ];
    for (address, gateway, host_len, routed_gateway) in families {
        let Some(address) = address else { continue };
        let bridged = link.bridge.is_some();
        let prefix_len = match gateway {
            Some(gateway) => gateway.prefix_len,
            None if bridged && host_len == 32 => 24,
            None if bridged => 64,
            None => host_len,
        };
        lines.push(address_line(
            inner,
            InterfaceAddress {
                address,
                prefix_len,
            },
        ));
        if !bridged && host_len == 32 {
            lines.push(format!("route add {routed_gateway} dev {inner} scope link"));
        }
        let via = match gateway {
            Some(gateway) => gateway.address.to_string(),
            None if bridged => continue,
            None => routed_gateway.to_owned(),
        };
        if default {
            lines.push(format!("route add default via {via} dev {inner}"));
        }
    }
    lines
}

fn host_lines(host: &str, link: &Link) -> Vec<String> {
    if let Some(bridge) = &link.bridge {
        return vec![format!("link set dev {host} master {} up", bridge.name)];
    }
    let mut lines = vec![
        format!("link set dev {host} up"),
        format!("addr add {ROUTED_GATEWAY_V4}/32 dev {host}"),
        format!("addr add {ROUTED_GATEWAY_V6}/64 dev {host} nodad"),
    ];
    lines.extend(link.v4.map(|a| format!("route add {a}/32 dev {host}")));
    lines.extend(link.v6.map(|a| format!("route add {a}/128 dev {host}")));
    lines
}

/// Index of an interface in the calling thread's namespace.
fn ifindex(name: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(name).map_err(|e| Error::io(format!("index of {name}"))(e.into()))
}

/// MAC address of an interface in the calling thread's namespace.
fn mac(name: &str) -> Result<[u8; 6], Error> {
    let addresses = nix::ifaddrs::getifaddrs()
        .map_err(|e| Error::io("reading interface addresses")(e.into()))?;
    addresses
        .filter(|entry| entry.interface_name == name)
        .find_map(|entry| entry.address?.as_link_addr()?.addr())
        .ok_or_else(|| {
            Error::io(format!("MAC address of {name}"))(std::io::ErrorKind::NotFound.into())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_addresses_parse_or_say_what_is_expected() {
        let address: InterfaceAddress = "fd00::1/64".parse().unwrap();
        assert_eq!(address.to_string(), "fd00::1/64");
        for bad in ["10.0.0.1", "10.0.0.1/33", "x/8", "fd00::1/129"] {
            let error = bad.parse::<InterfaceAddress>().unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn routed_links_get_host_routes_and_a_link_local_gateway() {
        let link = Link {
            bridge: None,
            v4: Some(Ipv4Addr::new(10, 9, 0, 2)),
            v6: Some("fd09::2".parse().unwrap()),
            host_name: None,
        };
        let inner = inner_lines("eth0", &link, true);
        assert!(inner.contains(&"addr add 10.9.0.2/32 dev eth0".to_owned()));
        assert!(inner.contains(&"route add default via 169.254.1.1 dev eth0".to_owned()));
        assert!(inner.contains(&"route add default via fe80::1 dev eth0".to_owned()));
        assert!(host_lines("v-x", &link).contains(&"route add fd09::2/128 dev v-x".to_owned()));
    }
}
