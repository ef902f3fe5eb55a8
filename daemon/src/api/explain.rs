//! What policy says about one flow, by which rule and on which line.

use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use dataplane_common::Direction;
use dataplane_common::stats::Verdict;
use policy::evaluate::{Evaluator, Flow, Owner};
use policy::model::{Estate, Mode, Modes, Protocol, Workload};
use serde::Deserialize;

use super::dto::{Explanation, ExplanationStep};
use super::error::Params;
use super::{Api, ApiError};
use crate::controller::ControlState;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    from: String,
    to: String,
    port: String,
    /// Judge as if every group were in protect mode.
    #[serde(default)]
    as_protect: bool,
}

pub(super) async fn explain_flow(
    State(api): State<Api>,
    Params(question): Params<Question>,
) -> Result<Json<Explanation>, ApiError> {
    explain(&api.controller.state(), &question).map(Json)
}

/// An end of the flow in question.
struct End<'a> {
    shown: String,
    addresses: Vec<IpAddr>,
    workload: Option<&'a Workload>,
}

/// This host, as flow records call it.
const HOST: &str = "host";

fn explain(state: &ControlState, question: &Question) -> Result<Explanation, ApiError> {
    let from = end(&state.estate, &question.from, "from")?;
    let to = end(&state.estate, &question.to, "to")?;
    let modes = if question.as_protect {
        Modes {
            default: Mode::Protect,
            groups: std::collections::BTreeMap::new(),
        }
    } else {
        state.modes.clone()
    };
    let evaluator = Evaluator::new(&state.estate, &state.policies, &modes, state.unselected);
    let mut steps = Vec::new();
    let mut verdict = Verdict::Forwarded;
    let mut shown_ports = Vec::new();
    for &source in &from.addresses {
        for &destination in &to.addresses {
            if !can_talk(source, destination) {
                continue;
            }
            let (protocol, port) = port(&question.port, to.workload, destination)?;
            let shown_port = show_port(protocol, port);
            if !shown_ports.contains(&shown_port) {
                shown_ports.push(shown_port);
            }
            let flow = Flow {
                source,
                destination,
                protocol,
                destination_port: port,
            };
            let decision = evaluator.evaluate(&flow);
            verdict = worse(verdict, decision.effective);
            for direction in [Direction::Egress, Direction::Ingress] {
                let Some(judgement) = decision.side(direction) else {
                    continue;
                };
                let local = match direction {
                    Direction::Egress => source,
                    Direction::Ingress => destination,
                };
                let workload = match evaluator.owner(local) {
                    Owner::Workload(workload) => {
                        format!("{}/{}", workload.namespace, workload.name)
                    }
                    Owner::Host => HOST.to_owned(),
                    Owner::World => local.to_string(),
                };
                steps.push(ExplanationStep {
                    direction: direction.as_str().to_owned(),
                    workload,
                    source,
                    destination,
                    mode: judgement.mode,
                    verdict: judgement.effective.as_str().to_owned(),
                    rule: judgement.rule.clone(),
                });
            }
        }
    }
    if shown_ports.is_empty() {
        return Err(ApiError::bad_request(format!(
            "{} and {} have no addresses of the same family and scope",
            from.shown, to.shown
        ))
        .hint("`workloads` shows the addresses"));
    }
    if steps.is_empty() {
        return Err(ApiError::bad_request(format!(
            "neither {} nor {} is a workload: no policy here judges this flow",
            from.shown, to.shown
        ))
        .hint("`workloads` shows the names and addresses"));
    }
    Ok(Explanation {
        from: from.shown,
        to: to.shown,
        port: shown_ports.join(", "),
        verdict: verdict.as_str().to_owned(),
        steps,
    })
}

/// Whether a host would send from one address to the other: both of one family, and link-local ones
/// among themselves (RFC 6724, rule 2).
fn can_talk(source: IpAddr, destination: IpAddr) -> bool {
    match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            source.is_unicast_link_local() == destination.is_unicast_link_local()
        }
        _ => false,
    }
}

/// What happens to a flow of which two address pairs are judged differently: the worse.
fn worse(left: Verdict, right: Verdict) -> Verdict {
    let rank = |verdict| match verdict {
        Verdict::Forwarded => 0,
        Verdict::Redirected => 1,
        Verdict::Audit => 2,
        Verdict::Dropped => 3,
    };
    if rank(right) > rank(left) {
        right
    } else {
        left
    }
}

fn end<'a>(estate: &'a Estate, text: &str, field: &str) -> Result<End<'a>, ApiError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let workload = estate
            .workloads
            .iter()
            .find(|workload| workload.addresses.contains(&address));
        return Ok(End {
            shown: match workload {
                Some(workload) => {
                    format!("{}/{} ({address})", workload.namespace, workload.name)
                }
                None => address.to_string(),
            },
            addresses: vec![address],
            workload,
        });
    }
    let matching: Vec<&Workload> = estate
        .workloads
        .iter()
        .filter(|workload| match text.split_once('/') {
            Some((namespace, name)) => workload.namespace == namespace && workload.name == name,
            None => workload.name == text,
        })
        .collect();
    match matching[..] {
        [workload] => Ok(End {
            shown: format!("{}/{}", workload.namespace, workload.name),
            addresses: workload.addresses.clone(),
            workload: Some(workload),
        }),
        [] if text == HOST => Ok(End {
            shown: HOST.to_owned(),
            addresses: estate.host_addresses.clone(),
            workload: None,
        }),
        [] => Err(
            ApiError::not_found(format!("{field}: there is no workload `{text}`"))
                .hint("use a name that `workloads` lists, `namespace/name`, `host`, or an address"),
        ),
        _ => Err(
            ApiError::bad_request(format!("{field}: several workloads are called `{text}`")).hint(
                format!(
                    "use one of {}",
                    matching
                        .iter()
                        .map(|workload| format!("{}/{}", workload.namespace, workload.name))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            ),
        ),
    }
}

/// `8080`, `8080/tcp`, `http`, `http/udp`, `icmp`, `icmp/3` (a type).
fn port(
    text: &str,
    to: Option<&Workload>,
    destination: IpAddr,
) -> Result<(Protocol, u16), ApiError> {
    const FORMS: &str = "use for example 8080/tcp, 53/udp, the name of a port of the destination, \
                         icmp or icmp/8";
    let bad = |what: String| ApiError::bad_request(what).hint(FORMS);
    let (left, right) = match text.split_once('/') {
        Some((left, right)) => (left, Some(right)),
        None => (text, None),
    };
    if left.eq_ignore_ascii_case("icmp") || left.eq_ignore_ascii_case("icmpv6") {
        // Both names mean the protocol of the addresses at hand.
        let (protocol, echo) = if destination.is_ipv4() {
            (Protocol::ICMP, 8)
        } else {
            (Protocol::ICMPV6, 128)
        };
        let icmp_type: u8 = match right {
            Some(right) => right
                .parse()
                .map_err(|_| bad(format!("port: `{right}` is no ICMP type")))?,
            None => echo,
        };
        return Ok((protocol, u16::from(icmp_type) << 8));
    }
    let protocol: Protocol = match right {
        Some(right) => right
            .parse()
            .map_err(|error: policy::model::UnknownProtocol| bad(format!("port: {error}")))?,
        None => Protocol::TCP,
    };
    if !left.is_empty() && left.bytes().all(|byte| byte.is_ascii_digit()) {
        return match left.parse::<u16>() {
            Ok(number) if number != 0 => Ok((protocol, number)),
            _ => Err(bad(format!("port: {left} is not between 1 and 65535"))),
        };
    }
    let named = to.and_then(|workload| {
        workload
            .ports
            .iter()
            .find(|port| port.name == left && port.protocol == protocol)
    });
    named.map(|named| (protocol, named.port)).ok_or_else(|| {
        bad(format!(
            "port: the destination has no {protocol} port called `{left}`"
        ))
    })
}

fn show_port(protocol: Protocol, port: u16) -> String {
    match protocol {
        Protocol::ICMP | Protocol::ICMPV6 => format!("{protocol} type {}", port >> 8),
        _ => format!("{port}/{protocol}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy::model::NamedPort;

    fn workload() -> Workload {
        Workload {
            name: "web".into(),
            namespace: "shop".into(),
            labels: [].into(),
            addresses: vec!["10.0.0.2".parse().unwrap()],
            ports: vec![NamedPort {
                name: "http".into(),
                port: 8080,
                protocol: Protocol::TCP,
            }],
            group: "shop/web".into(),
        }
    }

    #[test]
    fn ports_are_understood() {
        let web = workload();
        let v4: IpAddr = "10.0.0.2".parse().unwrap();
        let v6: IpAddr = "fd00::2".parse().unwrap();
        let ask = |text: &str, address| port(text, Some(&web), address).map_err(|e| e.body.error);
        assert_eq!(ask("8080/tcp", v4), Ok((Protocol::TCP, 8080)));
        assert_eq!(ask("53/udp", v4), Ok((Protocol::UDP, 53)));
        assert_eq!(ask("80", v4), Ok((Protocol::TCP, 80)));
        assert_eq!(ask("http", v4), Ok((Protocol::TCP, 8080)));
        assert_eq!(ask("icmp", v4), Ok((Protocol::ICMP, 8 << 8)));
        assert_eq!(ask("icmp", v6), Ok((Protocol::ICMPV6, 128 << 8)));
        assert_eq!(ask("icmp/3", v4), Ok((Protocol::ICMP, 3 << 8)));
        assert!(ask("99999/tcp", v4).unwrap_err().contains("65535"));
        assert!(ask("https", v4).unwrap_err().contains("called `https`"));
        for bad in [
            "http/udp",
            "nope",
            "0/tcp",
            "80/xyz",
            "",
            "99999/tcp",
            "icmp/x",
        ] {
            assert!(ask(bad, v4).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_addresses_that_talk_to_each_other_are_judged() {
        let asked = |source: &str, destination: &str| {
            can_talk(source.parse().unwrap(), destination.parse().unwrap())
        };
        assert!(asked("10.0.0.2", "192.0.2.1"));
        assert!(asked("fd00::2", "2001:db8::1"));
        assert!(asked("fe80::2", "fe80::3"));
        assert!(!asked("fe80::2", "fd00::3"));
        assert!(!asked("fd00::2", "fe80::3"));
        assert!(!asked("10.0.0.2", "fd00::3"));
    }

    #[test]
    fn ends_are_found_by_name_and_address_and_never_guessed() {
        let mut twin = workload();
        twin.namespace = "other".into();
        let estate = Estate {
            workloads: vec![workload(), twin],
            ..Estate::default()
        };
        assert_eq!(end(&estate, "shop/web", "from").unwrap().shown, "shop/web");
        assert_eq!(
            end(&estate, "192.0.2.1", "from").unwrap().addresses,
            vec!["192.0.2.1".parse::<IpAddr>().unwrap()]
        );
        let several = end(&estate, "web", "from").err().unwrap();
        assert!(several.body.hint.unwrap().contains("other/web"));
        let host = Estate {
            host_addresses: vec!["10.0.0.1".parse().unwrap()],
            ..Estate::default()
        };
        let this = end(&host, "host", "from").unwrap();
        assert_eq!(this.addresses, host.host_addresses);
        let none = end(&estate, "nobody", "to").err().unwrap();
        assert_eq!(none.status, axum::http::StatusCode::NOT_FOUND);
    }
}
