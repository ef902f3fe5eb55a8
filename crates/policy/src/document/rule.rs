//! The parts of a rule: peers, blocks, ports and selectors.

use ipnet::IpNet;

use super::{Fields, Reader, get};
use crate::netpol::{IntOrString, IpBlock, LabelSelector, Operator, Peer, Port, Requirement};
use crate::syntax::{self, Fault};
use crate::yaml::{Node, Position, Value};

/// The two lists of a rule; absent and empty differ in what is written again, not in meaning.
type PeersAndPorts = (Option<Vec<Peer>>, Option<Vec<Port>>);

impl Reader<'_> {
    pub(super) fn rule(
        &mut self,
        node: &Node,
        known: &'static [&'static str],
        peers_name: &'static str,
    ) -> Option<PeersAndPorts> {
        if matches!(node.value, Value::Null) {
            self.error(
                node.at,
                Fault::new("the rule is empty")
                    .hint("write `{}` to allow everything, or remove it"),
            );
            return None;
        }
        let fields = self.fields(node, known)?;
        let mut peers = None;
        if let Some((key, value)) = get(&fields, peers_name) {
            peers = self.field(peers_name, |reader| {
                let peers = reader.each(value, Self::peer);
                if matches!(&value.value, Value::Seq(items) if items.is_empty()) {
                    let fault = Fault::new(format!("an empty `{peers_name}` list means any peer"))
                        .hint("remove the rule if it should allow nothing");
                    reader.warn(key.at, fault);
                }
                reader.one_family_only(key.at, peers.as_deref().unwrap_or_default());
                peers
            });
        }
        let mut ports = None;
        if let Some((key, value)) = get(&fields, "ports") {
            ports = self.field("ports", |reader| {
                let ports = reader.each(value, Self::port);
                if matches!(&value.value, Value::Seq(items) if items.is_empty()) {
                    let fault = Fault::new("an empty `ports` list means any port")
                        .hint("remove the rule if it should allow nothing");
                    reader.warn(key.at, fault);
                }
                ports
            });
        }
        Some((peers, ports))
    }

    /// "Everywhere" is written once per family.
    fn one_family_only(&mut self, at: Position, peers: &[Peer]) {
        let names = |everywhere: &str| {
            peers
                .iter()
                .filter_map(|peer| peer.ip_block.as_ref())
                .any(|block| block.cidr == everywhere)
        };
        let (named, missing, family) = match (names("0.0.0.0/0"), names("::/0")) {
            (true, false) => ("0.0.0.0/0", "::/0", "IPv6"),
            (false, true) => ("::/0", "0.0.0.0/0", "IPv4"),
            (true, true) | (false, false) => return,
        };
        let fault = Fault::new(format!("`{named}` matches no {family} address"))
            .hint(format!("add `{missing}` if every address is meant"));
        self.warn(at, fault);
    }

    fn peer(&mut self, node: &Node) -> Option<Peer> {
        let hint = "write podSelector, namespaceSelector or ipBlock";
        if matches!(node.value, Value::Null) {
            self.error(node.at, Fault::new("the peer is empty").hint(hint));
            return None;
        }
        let errors = self.errors.len();
        let fields = self.fields(node, &["podSelector", "namespaceSelector", "ipBlock"])?;
        let mut peer = Peer::default();
        if let Some((_, value)) = get(&fields, "podSelector") {
            peer.pod_selector = self.field("podSelector", |reader| reader.selector(value));
        }
        if let Some((_, value)) = get(&fields, "namespaceSelector") {
            peer.namespace_selector =
                self.field("namespaceSelector", |reader| reader.selector(value));
        }
        if let Some((key, value)) = get(&fields, "ipBlock") {
            peer.ip_block = self.field("ipBlock", |reader| reader.ip_block(value));
            if get(&fields, "podSelector").is_some() || get(&fields, "namespaceSelector").is_some()
            {
                self.error(
                    key.at,
                    Fault::new("ipBlock cannot stand beside a selector")
                        .hint("write it as a list entry of its own"),
                );
            }
        }
        if peer == Peer::default() && self.errors.len() == errors {
            self.error(node.at, Fault::new("the peer is empty").hint(hint));
        }
        Some(peer)
    }

    fn ip_block(&mut self, node: &Node) -> Option<IpBlock> {
        let fields = self.fields(node, &["cidr", "except"])?;
        let Some((_, value)) = get(&fields, "cidr") else {
            self.missing(node.at, "cidr", "add `cidr: 192.0.2.0/24`");
            return None;
        };
        let (cidr, net) = self.field("cidr", |reader| reader.cidr(value))?;
        let mut except = None;
        if let Some((_, value)) = get(&fields, "except") {
            let mut seen: Vec<IpNet> = Vec::new();
            except = self.field("except", |reader| {
                reader.each(value, |reader, item| {
                    let (text, inner) = reader.cidr(item)?;
                    if !net.contains(&inner) || net == inner {
                        let fault = Fault::new(format!("`{text}` is not inside `{cidr}`"))
                            .hint("an exception is a smaller block within its cidr");
                        reader.error(item.at, fault);
                    }
                    if let Some(other) = seen
                        .iter()
                        .find(|other| other.contains(&inner) || inner.contains(*other))
                    {
                        let fault =
                            Fault::new(format!("`{text}` overlaps the exception `{other}`"))
                                .hint("one of them is enough");
                        reader.warn(item.at, fault);
                    }
                    seen.push(inner);
                    Some(text)
                })
            });
        }
        Some(IpBlock { cidr, except })
    }

    fn cidr(&mut self, node: &Node) -> Option<(String, IpNet)> {
        let text = self.string(node)?;
        let net = self.check(node.at, syntax::cidr(&text))?;
        let written: Option<IpNet> = text.parse().ok();
        if written.is_some_and(|written| written.addr() != net.addr()) {
            let fault = Fault::new(format!("`{text}` has host bits set and means `{net}`"))
                .hint(format!("write `{net}`"));
            self.warn(node.at, fault);
        }
        Some((text, net))
    }

    fn port(&mut self, node: &Node) -> Option<Port> {
        if matches!(node.value, Value::Null) {
            self.error(
                node.at,
                Fault::new("the port is empty").hint("write `{}` for every TCP port, or remove it"),
            );
            return None;
        }
        let fields = self.fields(node, &["protocol", "port", "endPort"])?;
        let mut port = Port::default();
        if let Some((_, value)) = get(&fields, "protocol") {
            port.protocol = self.field("protocol", |reader| {
                let text = reader.string(value)?;
                let choices = [("TCP", "TCP"), ("UDP", "UDP"), ("SCTP", "SCTP")];
                reader
                    .choice(value.at, &text, "protocol of NetworkPolicy", &choices)
                    .map(str::to_owned)
            });
        }
        if let Some((_, value)) = get(&fields, "port") {
            port.port = self.field("port", |reader| match &value.value {
                Value::Int(number) => {
                    reader.check(value.at, syntax::port_number(*number))?;
                    Some(IntOrString::Int(*number))
                }
                Value::String(name) => {
                    reader.check(value.at, syntax::port_name(name))?;
                    Some(IntOrString::String(name.clone()))
                }
                _ => {
                    reader.expected(value, "a port number or name");
                    None
                }
            });
        }
        if let Some((_, value)) = get(&fields, "endPort") {
            port.end_port = self.field("endPort", |reader| reader.end_port(value, &port, &fields));
        }
        Some(port)
    }

    fn end_port(&mut self, node: &Node, port: &Port, fields: &Fields<'_>) -> Option<i64> {
        let Value::Int(end) = node.value else {
            self.expected(node, "a port number");
            return None;
        };
        self.check(node.at, syntax::port_number(end))?;
        match &port.port {
            Some(IntOrString::Int(first)) if end < *first => {
                let fault = Fault::new(format!("endPort {end} is below port {first}"))
                    .hint("the range is inclusive and ascending");
                self.error(node.at, fault);
            }
            Some(IntOrString::Int(_)) => {}
            Some(IntOrString::String(name)) => {
                let fault = Fault::new(format!("endPort cannot follow the named port `{name}`"))
                    .hint("write the first port as a number");
                self.error(node.at, fault);
            }
            // A port that was itself refused is reported once.
            None if get(fields, "port").is_some() => {}
            None => {
                let fault = Fault::new("endPort needs `port`").hint("add the first port");
                self.error(node.at, fault);
            }
        }
        Some(end)
    }

    pub(super) fn selector(&mut self, node: &Node) -> Option<LabelSelector> {
        let fields = self.fields(node, &["matchLabels", "matchExpressions"])?;
        let mut selector = LabelSelector::default();
        if let Some((_, value)) = get(&fields, "matchLabels") {
            selector.match_labels = self.field("matchLabels", |reader| reader.labels(value, true));
        }
        if let Some((_, value)) = get(&fields, "matchExpressions") {
            selector.match_expressions = self.field("matchExpressions", |reader| {
                reader.each(value, Self::requirement)
            });
        }
        Some(selector)
    }

    fn requirement(&mut self, node: &Node) -> Option<Requirement> {
        let fields = self.fields(node, &["key", "operator", "values"])?;
        let key = match get(&fields, "key") {
            Some((_, value)) => self.field("key", |reader| {
                let key = reader.string(value)?;
                reader.check(value.at, syntax::label_key(&key))?;
                Some(key)
            }),
            None => {
                self.missing(node.at, "key", "name the label");
                None
            }
        };
        let operator = match get(&fields, "operator") {
            Some((_, value)) => self.field("operator", |reader| {
                let text = reader.string(value)?;
                reader.choice(
                    value.at,
                    &text,
                    "selector operator",
                    &[
                        ("In", Operator::In),
                        ("NotIn", Operator::NotIn),
                        ("Exists", Operator::Exists),
                        ("DoesNotExist", Operator::DoesNotExist),
                    ],
                )
            }),
            None => {
                self.missing(node.at, "operator", "use In, NotIn, Exists or DoesNotExist");
                None
            }
        };
        let mut values = None;
        if let Some((_, value)) = get(&fields, "values") {
            values = self.field("values", |reader| {
                reader.each(value, |reader, item| {
                    let text = reader.string(item)?;
                    reader.check(item.at, syntax::label_value(&text))?;
                    Some(text)
                })
            });
        }
        let (key, operator) = (key?, operator?);
        let given = values.as_ref().is_some_and(|values| !values.is_empty());
        match operator {
            Operator::In | Operator::NotIn
                if get(&fields, "values").is_none()
                    || values.as_ref().is_some_and(Vec::is_empty) =>
            {
                let fault = Fault::new(format!("{operator:?} needs values"))
                    .hint("add `values: [...]`, or use Exists or DoesNotExist");
                self.error(node.at, fault);
            }
            Operator::Exists | Operator::DoesNotExist if given => {
                let fault = Fault::new(format!("{operator:?} takes no values"))
                    .hint("remove `values`, or use In or NotIn");
                self.error(node.at, fault);
            }
            Operator::In | Operator::NotIn | Operator::Exists | Operator::DoesNotExist => {}
        }
        Some(Requirement {
            key,
            operator,
            values,
        })
    }
}
