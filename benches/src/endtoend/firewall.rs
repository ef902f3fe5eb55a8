//! The firewalls that are compared, each as someone who knows it well would set it up.
//!
//! All have `rules` rules that allow one source, destination, protocol and destination port each,
//! and drop the rest. The two that match the bench's traffic are in the middle, the mean cost of a
//! list; a set or a map does not care.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use testbed::Netns;

/// Port of the TCP service.
pub(super) const TCP_PORT: u16 = 8080;
/// Port of the UDP service.
pub(super) const UDP_PORT: u16 = 5300;
/// Client and server in every lab.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 70, 0, 2);
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 70, 0, 3);

/// A way to filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Firewall {
    /// No filter at all, and no `br_netfilter`.
    None,
    /// The dataplane of this project in protect mode on both host-side veths.
    Portcullis,
    /// nftables, bridge family: a set, and the same set read backwards for replies. Keeps no
    /// state, so that it does less than all others; a kernel without bridge conntrack has no more.
    NftBridge,
    /// nftables, conntrack and a set; on a bridge through `br_netfilter`.
    NftSet,
    /// iptables on nftables, conntrack and a list of rules; on a bridge through `br_netfilter`.
    IptablesNft,
    /// iptables as it was, likewise.
    IptablesLegacy,
    /// iptables as it was, conntrack and one set.
    Ipset,
}

impl Firewall {
    /// Name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Portcullis => "portcullis",
            Self::NftBridge => "nftables set, stateless",
            Self::NftSet => "nftables set, conntrack",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Ipset => "iptables-legacy, ipset",
        }
    }

    /// Whether a bridge must hand its packets to the IP hooks.
    fn needs_br_netfilter(self) -> bool {
        matches!(
            self,
            Self::NftSet | Self::IptablesNft | Self::IptablesLegacy | Self::Ipset
        )
    }

    /// Sets the firewall up in a namespace. Portcullis is set up by its own daemon's code instead.
    pub(super) fn load(self, host: &Netns, rules: u32) -> Result<()> {
        let bridged = if self.needs_br_netfilter() { "1" } else { "0" };
        for key in ["arptables", "ip6tables", "iptables"] {
            let key = format!("net/bridge/bridge-nf-call-{key}");
            // A kernel without it has nothing to switch off.
            let set = host.sysctl(&key, bridged);
            if self.needs_br_netfilter() && key.ends_with("-iptables") {
                set.context("this kernel has no br_netfilter")?;
            }
        }
        if self.needs_br_netfilter() {
            // Closed connections would fill the table of every lab; a small one is in its favour.
            host.sysctl("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "5")?;
        }
        match self {
            Self::None | Self::Portcullis => Ok(()),
            Self::NftBridge => feed(host, "nft", &["-f", "-"], &nft_bridge(rules)),
            Self::NftSet => feed(host, "nft", &["-f", "-"], &nft_set(rules)),
            Self::IptablesNft => feed(host, "iptables-nft-restore", &[], &iptables(rules)),
            Self::IptablesLegacy => {
                feed(host, "iptables-legacy-restore", &["-w"], &iptables(rules))
            }
            Self::Ipset => {
                feed(host, "ipset", &["restore"], &ipset(rules))?;
                feed(host, "iptables-legacy-restore", &["-w"], &iptables_ipset())
            }
        }
    }
}

struct Rule {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: &'static str,
    port: u16,
}

/// `count` rules, all different.
fn rules(count: u32) -> impl Iterator<Item = Rule> {
    let middle = count / 2;
    (0..count).map(move |number| {
        let own = |protocol, port| Rule {
            source: CLIENT,
            destination: SERVER,
            protocol,
            port,
        };
        if number == middle {
            return own("tcp", TCP_PORT);
        }
        if number + 1 == middle {
            return own("udp", UDP_PORT);
        }
        let [_, _, high, low] = (number % 1000).to_be_bytes();
        Rule {
            source: Ipv4Addr::new(10, 71, high, low),
            destination: Ipv4Addr::new(10, 72, high, low),
            protocol: if number % 2 == 0 { "tcp" } else { "udp" },
            port: 1024 + (number / 1000) as u16,
        }
    })
}

fn nft_elements(count: u32) -> String {
    let elements: Vec<String> = rules(count)
        .map(|rule| {
            format!(
                "{} . {} . {} . {}",
                rule.source, rule.destination, rule.protocol, rule.port
            )
        })
        .collect();
    format!(
        "set allowed {{\n type ipv4_addr . ipv4_addr . inet_proto . inet_service\n \
         elements = {{ {} }}\n}}\n",
        elements.join(",\n")
    )
}

/// Replies are told by the tuple alone, except that a bare SYN is none.
fn nft_bridge(count: u32) -> String {
    format!(
        "table bridge bench {{\n{}chain forward {{\n\
         type filter hook forward priority filter; policy drop;\n\
         ether type arp accept\n\
         ip saddr . ip daddr . ip protocol . th dport @allowed accept\n\
         tcp flags & (syn | ack) == syn drop\n\
         ip daddr . ip saddr . ip protocol . th sport @allowed accept\n\
         }}\n}}\n",
        nft_elements(count)
    )
}

fn nft_set(count: u32) -> String {
    format!(
        "table ip bench {{\n{}chain forward {{\n\
         type filter hook forward priority filter; policy drop;\n\
         ct state established,related accept\n\
         ip saddr . ip daddr . ip protocol . th dport @allowed accept\n\
         }}\n}}\n",
        nft_elements(count)
    )
}

const IPTABLES_HEAD: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n\
    :OUTPUT ACCEPT [0:0]\n\
    -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n";

fn iptables(count: u32) -> String {
    let mut text = IPTABLES_HEAD.to_owned();
    for rule in rules(count) {
        let Rule {
            source,
            destination,
            protocol,
            port,
        } = rule;
        writeln!(
            text,
            "-A FORWARD -s {source} -d {destination} -p {protocol} -m {protocol} --dport {port} \
             -j ACCEPT"
        )
        .expect("writing to a String");
    }
    text + "COMMIT\n"
}

fn iptables_ipset() -> String {
    format!("{IPTABLES_HEAD}-A FORWARD -m set --match-set allowed src,dst,dst -j ACCEPT\nCOMMIT\n")
}

/// `hash:ip,port,ip` is source, destination port, destination in our rule.
fn ipset(count: u32) -> String {
    let size = count.max(1024).next_power_of_two();
    let mut text = format!(
        "create allowed hash:ip,port,ip family inet hashsize {size} maxelem {}\n",
        size * 2
    );
    for rule in rules(count) {
        let Rule {
            source,
            destination,
            protocol,
            port,
        } = rule;
        writeln!(text, "add allowed {source},{protocol}:{port},{destination}")
            .expect("writing to a String");
    }
    text
}

/// Runs a program in the namespace with `text` on its standard input.
fn feed(host: &Netns, program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let mut child = host
        .command(program)?
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    // A write error means that the program stopped early; its own message is the better one.
    let _ = child
        .stdin
        .take()
        .context("stdin is piped above")?
        .write_all(text.as_bytes());
    let output = child
        .wait_with_output()
        .with_context(|| format!("waiting for {program}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let first = message.lines().next().unwrap_or("it says nothing");
        bail!("{program} failed: {first}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rules_are_distinct_and_the_matching_ones_lie_in_the_middle() {
        for count in [10, 1000, 10_000] {
            let all: Vec<_> = rules(count)
                .map(|r| (r.source, r.destination, r.protocol, r.port))
                .collect();
            assert_eq!(
                all.iter().collect::<BTreeSet<_>>().len(),
                count as usize,
                "duplicates among {count}"
            );
            let middle = count as usize / 2;
            assert_eq!(all[middle], (CLIENT, SERVER, "tcp", TCP_PORT));
            assert_eq!(all[middle - 1], (CLIENT, SERVER, "udp", UDP_PORT));
        }
    }
}
