use policy::model::Protocol;

use super::*;
use crate::workload::netlink::{HostLink, NetnsView};

const SHOP: &str = r#"
kind: Inventory
namespaces:
- {name: shop, labels: {team: a}}
workloads:
- name: web-1
  namespace: shop
  labels: {app: web, app.kubernetes.io/part-of: shop}
  interface: veth-web1
  ips: [10.0.0.2, "fd00::2"]
  ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 53, protocol: udp}]
- name: db
  netns: /run/netns/db
"#;

fn error(text: &str) -> String {
    Inventory::parse(text, "inv.yaml").unwrap_err().to_string()
}

#[test]
fn reads_the_documented_format() {
    let inventory = Inventory::parse(SHOP, "inv.yaml").unwrap();
    let [web, db] = inventory.workloads.as_slice() else {
        panic!("two workloads")
    };
    assert_eq!(inventory.namespaces["shop"].labels["team"], "a");
    assert_eq!(
        (web.name.as_str(), web.namespace.as_str()),
        ("web-1", "shop")
    );
    assert_eq!(web.labels["app.kubernetes.io/part-of"], "shop");
    assert_eq!(
        web.attachment,
        Attachment::Interface("veth-web1".to_owned())
    );
    assert_eq!(
        web.ips,
        [
            "10.0.0.2".parse::<IpAddr>().unwrap(),
            "fd00::2".parse().unwrap()
        ]
    );
    assert_eq!(web.ports[1].protocol, Protocol::UDP);
    assert_eq!(web.place.to_string(), "inv.yaml:9:14");
    assert_eq!(db.namespace, DEFAULT_NAMESPACE);
    assert_eq!(inventory.netns_paths(), [PathBuf::from("/run/netns/db")]);
}

#[test]
fn reads_json_too() {
    let json =
        r#"{"kind":"Inventory","workloads":[{"name":"a","interface":"v0","ips":["10.0.0.2"]}]}"#;
    assert_eq!(Inventory::parse(json, "-").unwrap().workloads[0].name, "a");
    let empty = Inventory::parse("kind: Inventory\n", "-").unwrap();
    assert_eq!(empty, Inventory::default());
}

#[test]
fn every_mistake_names_its_place_and_the_way_out() {
    let head = "kind: Inventory\nworkloads:\n";
    let one = "- {name: a, interface: v0, ips: [10.0.0.2]}\n";
    for (body, place, says) in [
        (
            "- {name: a, interfaces: v0}\n",
            "inv.yaml:3:13",
            "interfaces",
        ),
        ("- {interface: v0}\n", "inv.yaml:3", "name"),
        (
            "- {name: a}\n",
            "inv.yaml:3:10",
            "neither `interface` nor `netns`",
        ),
        (
            "- {name: a, interface: v0, netns: /x}\n",
            "inv.yaml:3:35",
            "keep one",
        ),
        (
            "- {name: a, netns: web}\n",
            "inv.yaml:3:20",
            "write `/run/netns/web`",
        ),
        (
            "- {name: a b, interface: v0}\n",
            "inv.yaml:3:10",
            "cannot name a workload",
        ),
        (
            "- {name: a, interface: v0, ips: [10.0.0.2/24]}\n",
            "inv.yaml:3:34",
            "without a prefix",
        ),
        (
            "- {name: a, interface: v0, ips: [127.0.0.1]}\n",
            "inv.yaml:3:34",
            "no workload",
        ),
        (
            "- {name: a, interface: v0, labels: {app: 'x y'}}\n",
            "inv.yaml:3:42",
            "label value",
        ),
        (
            "- {name: a, interface: v0, labels: {'a b': x}}\n",
            "inv.yaml:3:37",
            "label key",
        ),
        (
            "- {name: a, interface: v0, ports: [{name: http, port: 0}]}\n",
            "inv.yaml:3:55",
            "1 to 65535",
        ),
        (
            "- {name: a, interface: v0, ports: [{name: http, port: 65536}]}\n",
            "inv.yaml:3:55",
            "1 to 65535",
        ),
        (
            "- {name: a, interface: v0, ports: [{name: HTTP, port: 80}]}\n",
            "inv.yaml:3:43",
            "port name",
        ),
        (
            "- {name: a, interface: v0, ports: [{name: x, port: 80, protocol: ICMP}]}\n",
            "inv.yaml:3:66",
            "has no ports",
        ),
        (
            "- {name: a, interface: v0, ports: [{name: x, port: 80}, {name: x, port: 81}]}\n",
            "inv.yaml:3:64",
            "declared twice",
        ),
    ] {
        let text = error(&format!("{head}{body}"));
        assert!(text.starts_with(place), "{body} gave {text}");
        assert!(text.contains(says), "{body} gave {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    for (body, place, says) in [
        (
            "- {name: a, interface: v1}\n",
            "inv.yaml:4:10",
            "declared twice in namespace `default` (first at inv.yaml:3:10)",
        ),
        (
            "- {name: b, interface: v0}\n",
            "inv.yaml:4:24",
            "`a` already (inv.yaml:3:24)",
        ),
        (
            "- {name: b, interface: v1, ips: [10.0.0.2]}\n",
            "inv.yaml:4:34",
            "`a` already (inv.yaml:3:34)",
        ),
    ] {
        let text = error(&format!("{head}{one}{body}"));
        assert!(
            text.starts_with(place) && text.contains(says),
            "{body} gave {text}"
        );
    }
    for (text, place, says) in [
        ("kind: NetworkPolicy\n", "inv.yaml:1:7", "kind: Inventory"),
        ("workloads: []\n", "inv.yaml:", "kind"),
        ("kind: Inventory\nworkloads: [\n", "inv.yaml:", ""),
        (
            "kind: Inventory\nkind: Inventory\n",
            "inv.yaml:2",
            "kind; keep one",
        ),
        (
            "kind: Inventory\nnamespaces: [{name: a}, {name: a}]\n",
            "inv.yaml:2:32",
            "declared twice",
        ),
        ("", "inv.yaml", "begins with `kind: Inventory`"),
        (
            "kind: Inventory\nworkloads: [{name: a, interface: v, ports: [{name: x, port: y}]}]\n",
            "inv.yaml:2:",
            "expected a number",
        ),
    ] {
        let error = error(text);
        assert!(
            error.starts_with(place) && error.contains(says),
            "{text:?} gave {error}"
        );
    }
}

#[test]
fn what_the_kernel_does_not_have_is_refused_by_line() {
    let mut view = KernelView {
        own_inode: 1,
        ..KernelView::default()
    };
    let link = |name: &str, ifindex| HostLink {
        ifindex,
        name: name.to_owned(),
        peer: None,
    };
    let inventory = Inventory::parse(SHOP, "inv.yaml").unwrap();
    let check = |view: &KernelView| inventory.check_against(view).unwrap_err().to_string();
    assert!(check(&view).starts_with("inv.yaml:9:14: interface `veth-web1` of workload `web-1`"));
    view.links
        .insert("veth-web1".to_owned(), link("veth-web1", 7));
    view.uplinks.insert(7);
    assert!(check(&view).contains("default route"));
    view.uplinks.clear();
    assert!(check(&view).starts_with("inv.yaml:13:10: network namespace `/run/netns/db`"));
    view.paths.insert("/run/netns/db".into(), 1);
    assert!(check(&view).contains("daemon's own"));
    view.paths.insert("/run/netns/db".into(), 9);
    assert!(check(&view).contains("no veth leads"));
    view.netnses.insert(
        9,
        NetnsView {
            inode: 9,
            path: "/run/netns/db".into(),
            name: None,
            command: None,
            container: false,
            pairs: Vec::new(),
            error: None,
        },
    );
    inventory.check_against(&view).unwrap();
    let twice = format!("{SHOP}- {{name: db2, netns: /run/netns/db}}\n");
    let twice = Inventory::parse(&twice, "inv.yaml").unwrap();
    let text = twice.check_against(&view).unwrap_err().to_string();
    assert!(text.contains("same network namespace"), "{text}");
}
