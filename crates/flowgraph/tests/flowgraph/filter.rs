use flowgraph::RuleRef;
use flowgraph::record::{Event, FilterError, FlowFilter, FlowRecord, Opener, Reporter, Verdict};
use policy::model::Protocol;

use crate::build::{Talk, at};

fn filter(pairs: &[(&str, &str)]) -> FlowFilter {
    FlowFilter::parse(pairs.iter().copied(), at(3_600)).unwrap()
}

/// web-1 to db-1, denied by `shop/db` at line 12 a second after noon.
fn denied() -> FlowRecord {
    let mut record = Talk::tcp("10.0.0.1", "10.0.0.4", 5432)
        .denied(Reporter::Destination, "policy_default_deny");
    record.rule = Some(RuleRef {
        policy: "shop/db".to_owned(),
        file: Some("db.yaml".to_owned()),
        line: Some(12),
        rule: Some("ingress[0]".to_owned()),
    });
    record
}

#[test]
fn every_filter_matches_what_it_names_and_nothing_else() {
    let cases: &[(&str, &str, bool)] = &[
        ("verdict", "dropped", true),
        ("verdict", "forwarded,dropped", true),
        ("verdict", "forwarded", false),
        ("event", "denied", true),
        ("event", "new", false),
        ("direction", "ingress", true),
        ("direction", "unknown", false),
        ("opener", "certain", true),
        ("opener", "inferred", false),
        ("from", "web-1", true),
        ("from", "shop/web-1", true),
        ("from", "ops/web-1", false),
        ("from", "shop/web", true),
        ("from", "group:shop/web", true),
        ("from", "workload:shop/web", false),
        ("from", "workload:web-1", true),
        ("from", "ns:shop", true),
        ("from", "shop/", true),
        ("from", "ops/", false),
        ("from", "app=web", true),
        ("from", "app=db", false),
        ("from", "10.0.0.1", true),
        ("from", "10.0.0.0/30", true),
        ("from", "10.0.0.4", false),
        ("from", "::/0", false),
        ("from", "world", false),
        ("from", "host", false),
        ("to", "db-1", true),
        ("to", "web-1", false),
        ("workload", "db-1", true),
        ("workload", "web-1", true),
        ("workload", "api-1", false),
        ("group", "shop/db", true),
        ("namespace", "shop", true),
        ("namespace", "ops", false),
        ("ip", "10.0.0.4", true),
        ("ip", "10.9.0.0/16", false),
        ("port", "5432", true),
        ("port", "5000-6000", true),
        ("port", "5432/tcp", true),
        ("port", "5432/udp", false),
        ("port", "40000", false),
        ("protocol", "tcp", true),
        ("protocol", "17", false),
        ("drop-reason", "policy_default_deny", true),
        ("drop_reason", "policy-default-deny", true),
        ("drop-reason", "source_spoofed", false),
        ("policy", "db", true),
        ("policy", "shop/db", true),
        ("policy", "ops/db", false),
        ("rule", "shop/db:12", true),
        ("rule", "db:ingress[0]", true),
        ("rule", "shop/db:13", false),
        ("reply", "false", true),
        ("reply", "true", false),
        ("since", "2026-11-20T12:00:01Z", true),
        ("since", "2026-11-20T12:00:02Z", false),
        ("since", "1h", true),
        ("since", "59m", false),
        ("until", "2026-11-20T12:00:01Z", false),
        ("until", "59m", true),
    ];
    let record = denied();
    for (name, value, expected) in cases {
        assert_eq!(
            filter(&[(name, value)]).matches(&record),
            *expected,
            "{name}={value}"
        );
        let not = format!("not-{name}");
        assert_eq!(
            filter(&[(&not, value)]).matches(&record),
            !expected,
            "{not}={value}"
        );
        let pair = format!("{name}={value}");
        assert_eq!(
            filter(&[("not", &pair)]).matches(&record),
            !expected,
            "not={pair}"
        );
    }
}

#[test]
fn values_are_alternatives_and_filters_must_all_hold() {
    let record = denied();
    assert!(filter(&[]).matches(&record) && filter(&[]).is_empty());
    assert!(filter(&[("from", "api-1"), ("from", "web-1")]).matches(&record));
    assert!(!filter(&[("from", "web-1"), ("to", "api-1")]).matches(&record));
    assert!(!filter(&[("not-from", "api-1"), ("not-from", "web-1")]).matches(&record));
    assert!(filter(&[("from", "ns:shop"), ("not-from", "web-2")]).matches(&record));
}

#[test]
fn an_unknown_opener_lets_a_port_match_on_either_end() {
    let talk = Talk::tcp("10.0.0.1", "10.0.0.4", 5432).opener(Opener::Unknown);
    let mut record = talk.record(Reporter::Source, Event::Summary, [2, 2]);
    std::mem::swap(&mut record.source, &mut record.destination);
    record.l4.as_mut().unwrap().port = None;
    assert!(filter(&[("port", "5432")]).matches(&record));
    assert!(!filter(&[("port", "5433")]).matches(&record));
}

#[test]
fn host_and_world_and_names_are_peers() {
    let mut record =
        Talk::udp("10.0.0.254", "198.51.100.7", 53).record(Reporter::Source, Event::New, [1, 0]);
    record.destination.names = vec!["dns.example".to_owned()];
    assert!(filter(&[("from", "host"), ("to", "world"), ("to", "DNS.example")]).matches(&record));
    assert!(!filter(&[("from", "world")]).matches(&record));
    assert_eq!(record.verdict, Verdict::Forwarded);
    assert_eq!(record.protocol(), Some(Protocol::UDP));
}

#[test]
fn what_is_not_understood_is_an_error_with_a_way_out() {
    let parse = |name, value| FlowFilter::parse([(name, value)], at(0)).unwrap_err();
    let unknown = parse("form", "web");
    assert_eq!(
        unknown,
        FilterError::UnknownFilter {
            name: "form".to_owned()
        }
    );
    assert!(
        unknown
            .to_string()
            .starts_with("`form` is not a flow filter: use verdict, event,")
    );
    for (name, value, hint) in [
        (
            "verdict",
            "droped",
            "forwarded, redirected, audit or dropped",
        ),
        ("drop-reason", "deny", "policy_deny, policy_default_deny"),
        ("port", "80-", "8000-8080"),
        ("port", "90-80", "8000-8080"),
        ("port", "70000", "443"),
        ("protocol", "tpc", "TCP, UDP"),
        ("since", "yesterday", "15m, 2h, 7d"),
        ("since", "-5m", "15m, 2h, 7d"),
        ("since", "99999999999999d", "15m, 2h, 7d"),
        ("since", "é", "15m, 2h, 7d"),
        ("ip", "10.0.0.300", "an address or CIDR"),
        ("from", "", "LABEL=VALUE"),
        ("from", "=x", "LABEL=VALUE"),
        ("from", "pod:web", "ns:NAME"),
        ("reply", "yes", "true or false"),
        ("not-verdict", "droped", "forwarded"),
    ] {
        let text = parse(name, value).to_string();
        assert!(text.contains(hint), "{name}={value}: {text}");
        assert!(text.contains(value), "{name}={value}: {text}");
    }
    assert!(
        parse("not", "verdict")
            .to_string()
            .contains("not=name=value")
    );
    assert!(
        parse("not-not-verdict", "dropped")
            .to_string()
            .contains("not a flow filter")
    );
}
