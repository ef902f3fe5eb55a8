use flowgraph::record::{Event, FlowRecord, Opener, Reporter, TcpFlags, Verdict};
use serde_json::json;

use crate::build::Talk;

#[test]
fn json_has_exactly_the_documented_fields() {
    let mut record =
        Talk::tcp("10.0.0.1", "198.51.100.7", 443).denied(Reporter::Source, "policy_deny");
    record.l4.as_mut().unwrap().tcp_flags = Some(TcpFlags(0x12));
    record.destination.names = vec!["pay.example".to_owned()];
    let expected = json!({
        "time": "2026-11-20T12:00:01Z",
        "event": "denied",
        "verdict": "dropped",
        "drop_reason": "policy_deny",
        "direction": "egress",
        "opener": "certain",
        "is_reply": false,
        "source": {"workload": "web-1", "namespace": "shop", "group": "shop/web",
            "labels": {"app": "web", "pod": "1"}, "identity": 300, "ip": "10.0.0.1", "port": 40000},
        "destination": {"identity": 2, "ip": "198.51.100.7", "port": 443, "names": ["pay.example"]},
        "l4": {"protocol": "TCP", "port": 443, "tcp_flags": ["SYN", "ACK"]},
        "rule": {"policy": "none"},
        "generation": 1,
        "packets": 1,
        "bytes": 100,
        "reply_packets": 0,
        "reply_bytes": 0,
        "first_seen": "2026-11-20T12:00:00Z",
        "last_seen": "2026-11-20T12:00:01Z",
        "observation": {"lost_events": 0},
    });
    assert_eq!(serde_json::to_value(&record).unwrap(), expected);
    let back: FlowRecord = serde_json::from_value(expected).unwrap();
    assert_eq!(back, record);
}

#[test]
fn unknown_direction_says_unknown_and_still_names_its_reporter() {
    let record = Talk::tcp("10.0.0.1", "10.0.0.3", 8080)
        .opener(Opener::Unknown)
        .record(Reporter::Destination, Event::Summary, [3, 3]);
    let value = serde_json::to_value(&record).unwrap();
    assert_eq!(value["direction"], "unknown");
    assert_eq!(value["opener"], "unknown");
    assert!(value.get("is_reply").is_none());
    assert_eq!(value["observation"]["reporter"], "destination");
    assert_eq!(record.reporter(), Some(Reporter::Destination));
}

#[test]
fn enum_names_are_the_same_in_json_and_in_text() {
    for verdict in Verdict::ALL {
        assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.as_str());
        assert_eq!(Verdict::from_name(verdict.as_str()), Some(*verdict));
    }
    for event in Event::ALL {
        assert_eq!(serde_json::to_value(event).unwrap(), event.as_str());
    }
    for opener in Opener::ALL {
        assert_eq!(serde_json::to_value(opener).unwrap(), opener.as_str());
    }
}

#[test]
fn an_unknown_tcp_flag_is_an_error_that_names_the_known_ones() {
    let error = serde_json::from_str::<TcpFlags>(r#"["SYN","SIN"]"#).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`SIN` is not a TCP flag: use FIN, SYN")
    );
}
