use flowgraph::edge::PeerKey;
use flowgraph::selector::{NoSelector, choose};
use policy::model::{Estate, Workload};

use crate::build::{group, labels, workload};

fn estate(workloads: Vec<Workload>) -> Estate {
    Estate {
        workloads,
        ..Estate::default()
    }
}

fn w(name: &str, group: &str, label_text: &str) -> Workload {
    workload(
        &format!("shop/{name}"),
        &format!("shop/{group}"),
        label_text,
        &[],
    )
}

#[test]
fn the_smallest_exact_set_with_the_most_human_keys_is_chosen() {
    let hash = "pod-template-hash=abc";
    let cases: Vec<(&str, Vec<Workload>, &str)> = vec![
        (
            "app",
            vec![w("a", "a", "app=a zone=x"), w("b", "b", "app=b zone=y")],
            "app=a",
        ),
        (
            "the recommended key before others",
            vec![
                w("a", "a", "app=a app.kubernetes.io/name=a"),
                w("b", "b", "app=b"),
            ],
            "app.kubernetes.io/name=a",
        ),
        (
            "compose service",
            vec![
                w(
                    "a",
                    "a",
                    "com.docker.compose.project=p com.docker.compose.service=a com.docker.compose.container-number=1",
                ),
                w(
                    "b",
                    "b",
                    "com.docker.compose.project=p com.docker.compose.service=b",
                ),
            ],
            "com.docker.compose.service=a",
        ),
        (
            "two projects in one namespace need both",
            vec![
                w(
                    "a",
                    "a",
                    "com.docker.compose.project=p com.docker.compose.service=a",
                ),
                w(
                    "b",
                    "b",
                    "com.docker.compose.project=q com.docker.compose.service=a",
                ),
                w(
                    "c",
                    "c",
                    "com.docker.compose.project=p com.docker.compose.service=c",
                ),
            ],
            "com.docker.compose.project=p com.docker.compose.service=a",
        ),
        (
            "one plain label before two human ones",
            vec![
                w("a", "a", "app=x role=y special=z"),
                w("b", "b", "app=x role=y"),
            ],
            "special=z",
        ),
        (
            "only what all members have",
            vec![
                w("a1", "a", "app=a pod=1 tier=t"),
                w("a2", "a", "pod=2 tier=t"),
                w("b", "b", "tier=u"),
            ],
            "tier=t",
        ),
        (
            "nothing that changes with a rollout",
            vec![
                w("a", "a", &format!("{hash} zone=z")),
                w("b", "b", "zone=y"),
            ],
            "zone=z",
        ),
        (
            "four labels when it takes four",
            vec![
                w("a", "a", "p=1 q=1 r=1 s=1 t=1"),
                w("b", "b", "q=1 r=1 s=1 t=1"),
                w("c", "c", "p=1 r=1 s=1 t=1"),
                w("d", "d", "p=1 q=1 s=1 t=1"),
                w("e", "e", "p=1 q=1 r=1 t=1"),
            ],
            "p=1 q=1 r=1 s=1",
        ),
    ];
    for (name, workloads, expected) in cases {
        let choice = choose(&estate(workloads), &group("shop", "a")).unwrap();
        assert_eq!(choice.labels, labels(expected), "{name}");
        assert!(
            choice.reason.contains("selects exactly the"),
            "{name}: {}",
            choice.reason
        );
        assert_eq!(choice.selector().match_labels, Some(choice.labels));
    }
}

#[test]
fn workloads_of_other_namespaces_do_not_matter() {
    let other = workload("ops/a", "ops/a", "app=a", &[]);
    let choice = choose(
        &estate(vec![w("a", "a", "app=a"), other]),
        &group("shop", "a"),
    )
    .unwrap();
    assert_eq!(choice.labels, labels("app=a"));
    assert!(
        choice
            .reason
            .contains("1 workload of shop/a and none of 0 workloads beside it")
    );
}

#[test]
fn without_an_exact_set_there_is_no_selector() {
    let twin = estate(vec![w("a", "a", "app=x"), w("b", "b", "app=x extra=1")]);
    assert_eq!(
        choose(&twin, &group("shop", "a")),
        Err(NoSelector::NotExact(vec!["b".to_owned()]))
    );
    let error = choose(&twin, &group("shop", "a")).unwrap_err().to_string();
    assert_eq!(
        error,
        "every label its workloads have in common also selects b: give the group a label of its own"
    );
    assert_eq!(
        choose(&twin, &group("shop", "b")).unwrap().labels,
        labels("extra=1")
    );
    let mut invalid = w("a", "a", "");
    for (key, value) in [
        ("maintainer", "A B <a@b>"),
        ("com.docker.compose.project.config_files", "x.yml"),
        ("UPPER.example/x", "ok"),
        ("empty", ""),
        ("-x", "ok"),
        ("pod-template-hash", "ok"),
        ("org.opencontainers.image.title", "ok"),
    ] {
        invalid.labels.insert(key.to_owned(), value.to_owned());
    }
    assert_eq!(
        choose(&estate(vec![invalid]), &group("shop", "a")),
        Err(NoSelector::NoCommonLabel)
    );
    assert_eq!(
        choose(&estate(vec![]), &group("shop", "a")),
        Err(NoSelector::NoMembers)
    );
    assert_eq!(choose(&twin, &PeerKey::Host), Err(NoSelector::NoMembers));
}

#[test]
fn a_workload_without_group_is_selected_by_itself() {
    let lone = estate(vec![
        w("a", "", "app=a"),
        workload("shop/b", "", "app=b", &[]),
    ]);
    let key = PeerKey::Workload {
        namespace: "shop".to_owned(),
        name: "b".to_owned(),
    };
    assert_eq!(choose(&lone, &key).unwrap().labels, labels("app=b"));
}
