//! No text makes the reader panic, and whatever it accepts can be exported, judged and compiled.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Scene, workload};
use policy::compile::Interner;
use policy::export::to_yaml;
use policy::parse::{ParseErrors, PolicySet, parse_documents};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const SEED: &str = r#"# comment
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: p
  namespace: x
  labels: {app: a}
spec:
  podSelector:
    matchLabels: {app: a}
    matchExpressions:
    - {key: tier, operator: In, values: [web, "2"]}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: &peers
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    - namespaceSelector: {}
      podSelector: {matchLabels: {app: b}}
    ports:
    - {protocol: UDP, port: 53}
    - {port: 8000, endPort: 8080}
    - port: http
  egress:
  - to: *peers
  - {}
---
kind: List
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: q}
  spec: {podSelector: {}}
"#;

/// Pieces that turn one valid document into a nearly valid one.
const PIECES: [&str; 40] = [
    "",
    " ",
    "\n",
    "  ",
    ":",
    ": ",
    "-",
    "- ",
    "---\n",
    "...\n",
    "{}",
    "[]",
    "{",
    "}",
    "[",
    "]",
    "null",
    "~",
    "0",
    "-1",
    "65536",
    "1e9",
    "\"",
    "'",
    "#",
    "&a ",
    "*a",
    "*peers",
    "<<: ",
    "!!str ",
    "|",
    ">",
    "\t",
    "%",
    "@",
    "\u{0}",
    "é",
    "yes",
    "99999999999999999999",
    "except",
];

fn check(text: &str) -> Result<(), TestCaseError> {
    match parse_documents("fuzz.yaml", text) {
        Err(ParseErrors(problems)) => {
            prop_assert!(!problems.is_empty());
            for problem in problems {
                prop_assert!(problem.line > 0 && problem.column > 0, "{problem}\n{text}");
                prop_assert!(!problem.message.is_empty());
            }
        }
        Ok(parsed) => {
            let annotated: Vec<_> = parsed
                .policies
                .iter()
                .map(|document| document.policy().clone().into())
                .collect();
            let exported = to_yaml(&annotated);
            let again = parse_documents("again.yaml", &exported)
                .map_err(|errors| TestCaseError::fail(format!("{errors}\n{exported}\n{text}")))?;
            prop_assert_eq!(again.policies.len(), parsed.policies.len());
            let policies: PolicySet = parsed.policies.into();
            let stored = serde_json::to_string(&policies).unwrap();
            prop_assert_eq!(
                &serde_json::from_str::<PolicySet>(&stored).unwrap(),
                &policies
            );
            let workloads = vec![
                workload("x/a", "app=a,tier=web", &["10.0.0.2", "fd00::2"]),
                workload("x/b", "app=b", &["10.1.0.2"]),
            ];
            let scene = Scene::new(workloads, vec![], policies);
            for (from, to) in [("x/a", "x/b"), ("x/b", "x/a"), ("192.0.2.1", "x/a")] {
                // Panics when evaluator and compiled maps differ.
                scene.judge(from, to, "53/UDP");
                scene.judge(from, to, "8080/TCP");
            }
            scene.compile(&mut Interner::new());
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn edited_documents(edits in vec((any::<Index>(), 0_usize..12, select(&PIECES[..])), 1..5)) {
        let mut text: Vec<char> = SEED.chars().collect();
        for (place, length, piece) in edits {
            let start = place.index(text.len() + 1);
            let end = (start + length).min(text.len());
            text.splice(start..end, piece.chars());
        }
        check(&text.into_iter().collect::<String>())?;
    }

    #[test]
    fn documents_with_lines_moved(moves in vec((any::<Index>(), any::<Index>()), 1..4)) {
        let mut lines: Vec<&str> = SEED.lines().collect();
        for (from, to) in moves {
            let line = lines.remove(from.index(lines.len()));
            lines.insert(to.index(lines.len() + 1), line);
        }
        check(&(lines.join("\n") + "\n"))?;
    }

    #[test]
    fn any_text(text in any::<String>()) {
        check(&text)?;
    }
}

#[test]
fn the_seed_is_valid() {
    assert_eq!(parse_documents("seed", SEED).unwrap().policies.len(), 2);
    check(SEED).unwrap();
}
