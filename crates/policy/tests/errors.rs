//! Bad policy files: every mistake has file, line, column, field and a way out.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use policy::parse::{ParseErrors, Problem, parse_documents, parse_files};

fn errors(text: &str) -> Vec<Problem> {
    match parse_documents("bad.yaml", text) {
        Ok(parsed) => panic!("accepted: {parsed:?}"),
        Err(ParseErrors(problems)) => problems,
    }
}

/// `line:column: field: message; hint` of every problem.
fn lines(text: &str) -> Vec<String> {
    errors(text)
        .iter()
        .map(|problem| {
            assert!(problem.line > 0 && problem.column > 0, "{problem}");
            let text = problem.to_string();
            text.strip_prefix("bad.yaml:")
                .expect("names the file")
                .to_owned()
        })
        .collect()
}

const HEAD: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";

/// The one problem of a policy with this spec, which begins on line 5.
fn spec_error(spec: &str) -> String {
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!("{HEAD}spec:\n{indented}");
    let mut problems = lines(&text);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.remove(0)
}

#[test]
fn spec_mistakes() {
    let mut wrong = Vec::new();
    for (spec, expected) in [
        (
            "podSelectr: {}",
            "5:3: spec: unknown field `podSelectr`; did you mean `podSelector`?",
        ),
        (
            "colour: red",
            "5:3: spec: unknown field `colour`; known here: podSelector, policyTypes, ingress, egress",
        ),
        (
            "podSelector: {}\npodSelector: {}",
            "6:3: spec: field `podSelector` stands twice; merge it with the one on line 5",
        ),
        (
            "podSelector: []",
            "5:16: spec.podSelector: expected a mapping, found a list",
        ),
        (
            "policyTypes: [ingress]",
            "5:17: spec.policyTypes[0]: `ingress` is not a policy type; did you mean `Ingress`?",
        ),
        (
            "policyTypes: Ingress",
            "5:16: spec.policyTypes: expected a list, found a string",
        ),
        (
            "ingress:\n- ports:\n  - port: 70000",
            "7:13: spec.ingress[0].ports[0].port: port 70000 is out of range; use 1 to 65535",
        ),
        (
            "ingress:\n- ports:\n  - port: 0",
            "7:13: spec.ingress[0].ports[0].port: port 0 is out of range; use 1 to 65535",
        ),
        (
            "ingress:\n- ports:\n  - port: \"80\"",
            "7:13: spec.ingress[0].ports[0].port: `80` is not a port name; write the number without \
             quotes: 80",
        ),
        (
            "ingress:\n- ports:\n  - {port: 90, endPort: 80}",
            "7:27: spec.ingress[0].ports[0].endPort: endPort 80 is below port 90; the range is \
             inclusive and ascending",
        ),
        (
            "ingress:\n- ports:\n  - {port: http, endPort: 80}",
            "7:29: spec.ingress[0].ports[0].endPort: endPort cannot follow the named port `http`; \
             write the first port as a number",
        ),
        (
            "ingress:\n- ports:\n  - endPort: 80",
            "7:16: spec.ingress[0].ports[0].endPort: endPort needs `port`; add the first port",
        ),
        (
            "ingress:\n- ports:\n  - {protocol: tcp}",
            "7:18: spec.ingress[0].ports[0].protocol: `tcp` is not a protocol of NetworkPolicy; did \
             you mean `TCP`?",
        ),
        (
            "ingress:\n- ports:\n  - {protocol: ICMP}",
            "7:18: spec.ingress[0].ports[0].protocol: `ICMP` is not a protocol of NetworkPolicy; use \
             one of: TCP, UDP, SCTP",
        ),
        (
            "ingress:\n-",
            "6:4: spec.ingress[0]: the rule is empty; write `{}` to allow everything, or remove it",
        ),
        (
            "ingress:\n- from:\n  - {}",
            "7:7: spec.ingress[0].from[0]: the peer is empty; write podSelector, \
             namespaceSelector or ipBlock",
        ),
        (
            "ingress:\n- to:\n  - podSelector: {}",
            "6:5: spec.ingress[0]: unknown field `to`; known here: from, ports",
        ),
        (
            "egress:\n- to:\n  - ipBlock: {cidr: 10.0.0.0/8}\n    podSelector: {}",
            "7:7: spec.egress[0].to[0]: ipBlock cannot stand beside a selector; write it as a list \
             entry of its own",
        ),
        (
            "egress:\n- to:\n  - ipBlock: {cidr: 10.0.0.0/33}",
            "7:23: spec.egress[0].to[0].ipBlock.cidr: `10.0.0.0/33` is not a CIDR block: `33` is no \
             prefix length; use 0 to 32",
        ),
        (
            "egress:\n- to:\n  - ipBlock: {cidr: 10.0.0.1}",
            "7:23: spec.egress[0].to[0].ipBlock.cidr: `10.0.0.1` is not a CIDR block; write \
             `10.0.0.1/32` for this one address",
        ),
        (
            "egress:\n- to:\n  - ipBlock: {}",
            "7:16: spec.egress[0].to[0].ipBlock: `cidr` is missing; add `cidr: 192.0.2.0/24`",
        ),
        (
            "egress:\n- to:\n  - ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}",
            "7:44: spec.egress[0].to[0].ipBlock.except[0]: `11.0.0.0/9` is not inside `10.0.0.0/8`; \
             an exception is a smaller block within its cidr",
        ),
        (
            "egress:\n- to:\n  - ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}",
            "7:44: spec.egress[0].to[0].ipBlock.except[0]: `10.0.0.0/8` is not inside `10.0.0.0/8`; \
             an exception is a smaller block within its cidr",
        ),
        (
            "podSelector: {matchLabels: {app: 1}}",
            "5:36: spec.podSelector.matchLabels.app: expected a string, found a number; write it in \
             quotes: \"1\"",
        ),
        (
            "podSelector: {matchLabels: {app: yes}}",
            "5:36: spec.podSelector.matchLabels.app: expected a string, found a boolean; write it in \
             quotes: YAML reads true, yes, y, on and their opposites as booleans",
        ),
        (
            "podSelector: {matchLabels: {-a: b}}",
            "5:31: spec.podSelector.matchLabels.-a: `-a` is not a label key; use `name` or \
             `dns.prefix/name`, the name with at most 63 letters, digits, `-`, `_` and `.`, beginning \
             and ending with a letter or digit",
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: In}]}",
            "5:36: spec.podSelector.matchExpressions[0]: In needs values; add `values: [...]`, or use \
             Exists or DoesNotExist",
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            "5:36: spec.podSelector.matchExpressions[0]: Exists takes no values; remove `values`, or \
             use In or NotIn",
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: NotExists}]}",
            "5:55: spec.podSelector.matchExpressions[0].operator: `NotExists` is not a selector \
             operator; use one of: In, NotIn, Exists, DoesNotExist",
        ),
    ] {
        let found = spec_error(spec);
        if found != expected {
            wrong.push(format!("{spec}\n  found    {found}\n  expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn document_mistakes() {
    for (text, expected) in [
        (
            "kind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n",
            "1:1: `apiVersion` is missing; add `apiVersion: networking.k8s.io/v1`",
        ),
        (
            "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: p}\n\
             spec: {podSelector: {}}\n",
            "1:13: apiVersion: `extensions/v1beta1` is not supported; use `networking.k8s.io/v1`",
        ),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nspec: {podSelector: {}}\n",
            "1:1: `metadata` is missing; add `metadata: {name: ...}`",
        ),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: x}\n\
             spec: {podSelector: {}}\n",
            "3:11: metadata: `name` is missing; add `name`; `generateName` is not supported",
        ),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: My_Policy}\n\
             spec: {podSelector: {}}\n",
            "3:18: metadata.name: `My_Policy` is not an object name; use at most 253 lower-case \
             letters, digits, `-` and `.`, beginning and ending with a letter or digit",
        ),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, lables: {}}\n\
             spec: {podSelector: {}}\n",
            "3:21: metadata: unknown field `lables`; did you mean `labels`?",
        ),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n",
            "1:1: `spec` is missing; add `spec` with `podSelector` and `policyTypes`",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n",
            "2:7: kind `Service` is not supported; only `NetworkPolicy` is read here; move it to \
             another file",
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: s}\n",
            "2:7: kind `CiliumNetworkPolicy` is not supported; rewrite it as `kind: NetworkPolicy` \
             of `networking.k8s.io/v1`",
        ),
        (
            "kind: networkpolicy\n",
            "1:7: kind `networkpolicy` is not supported; did you mean `NetworkPolicy`?",
        ),
        (
            "spec: {}\n",
            "1:1: `kind` is missing; a policy begins with `apiVersion: networking.k8s.io/v1` and \
             `kind: NetworkPolicy`",
        ),
        (
            "- a\n- b\n",
            "1:1: expected a policy, found a list; a policy begins with `apiVersion: \
             networking.k8s.io/v1` and `kind: NetworkPolicy`",
        ),
        (
            "kind: List\nitems: {}\n",
            "2:8: items: expected a list, found a mapping",
        ),
    ] {
        assert_eq!(lines(text), [expected], "{text}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: one
spec:
  podSelectors: {}
  ingress:
  - from:
    - ipBlock:
        cidr: 300.0.0.0/8
    ports:
    - port: 99999
---
kind: Deployment
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: two}
spec:
  podSelector: {}
  egress:
  - ports: [{port: 443, endport: 444}]
";
    let found: Vec<_> = errors(text)
        .into_iter()
        .map(|problem| (problem.line, problem.column, problem.field))
        .collect();
    let expected = [
        (6, 3, "spec"),
        (10, 15, "spec.ingress[0].from[0].ipBlock.cidr"),
        (12, 13, "spec.ingress[0].ports[0].port"),
        (14, 7, ""),
        (22, 25, "spec.egress[0].ports[0]"),
    ];
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(line, column, field)| (line, column, field.to_owned()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn malformed_yaml_has_a_place() {
    for text in [
        "kind: NetworkPolicy\nmetadata: {name: p\nspec:\n",
        "kind: NetworkPolicy\n\tmetadata: x\n",
        "a: b: c\n",
        "- a\nb: c\n",
        "kind: \"open\n",
        "kind: *nowhere\n",
        "? {a: b}\n: c\n",
    ] {
        let problems = errors(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].line > 0 && problems[0].column > 0,
            "{text:?}: {}",
            problems[0]
        );
        assert!(!problems[0].message.is_empty());
    }
}

#[test]
fn duplicates_name_both_places() {
    let one = format!("{HEAD}spec: {{podSelector: {{}}}}\n");
    let text = format!("{one}---\n{one}");
    assert_eq!(
        lines(&text),
        [
            "6:1: metadata.name: policy `default/p` is already defined; rename it or remove the one at \
          bad.yaml:1"
        ]
    );
    let ParseErrors(problems) =
        parse_files([("a.yaml", one.as_str()), ("b.yaml", one.as_str())]).unwrap_err();
    assert_eq!(
        problems[0].to_string(),
        "b.yaml:1:1: metadata.name: policy `default/p` is already defined; rename it or remove the \
         one at a.yaml:1"
    );
    // The same name in another namespace is another policy.
    let other = one.replace("name: p", "name: p, namespace: other");
    assert_eq!(
        parse_documents("c", &format!("{one}---\n{other}"))
            .unwrap()
            .policies
            .len(),
        2
    );
}

#[test]
fn huge_and_hostile_input_is_refused_quickly() {
    let started = std::time::Instant::now();
    let huge = "# x\n".repeat(5 << 20);
    assert!(errors(&huge)[0].message.contains("limit"));
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..30 {
        let alias = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{alias}]\n"));
    }
    assert_eq!(errors(&bomb).len(), 1);
    let deep = format!("kind: {}{}", "[".repeat(200_000), "]".repeat(200_000));
    assert_eq!(errors(&deep).len(), 1);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

fn warnings(spec: &str) -> Vec<String> {
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!("{HEAD}spec:\n{indented}");
    let parsed = parse_documents("odd.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    let warnings = parsed.warnings.iter();
    warnings
        .map(|problem| format!("{}:{}: {}", problem.line, problem.column, problem.message))
        .collect()
}

#[test]
fn surprising_policies_are_accepted_with_a_warning() {
    for (spec, expected) in [
        ("podSelector: {}\npolicyTypes: [Ingress]", None),
        (
            "policyTypes: [Ingress]",
            Some("5:3: without podSelector the policy selects every workload of its namespace"),
        ),
        (
            "podSelector: {}\ningress: [{}]",
            Some(
                "5:3: the empty podSelector selects every workload of the namespace, so its rules are \
                 granted to all of them",
            ),
        ),
        (
            "podSelector: {matchLabels: {a: b}}\negress: [{}]",
            Some("6:3: without policyTypes this policy also denies all ingress"),
        ),
        (
            "podSelector: {matchLabels: {a: b}}\negress: []",
            Some("6:3: without policyTypes an empty egress list isolates nothing"),
        ),
        (
            "podSelector: {matchLabels: {a: b}}\npolicyTypes: [Ingress]\negress: [{}]",
            Some("7:3: the egress rules have no effect, policyTypes does not list Egress"),
        ),
        (
            "podSelector: {matchLabels: {a: b}}\ningress: [{from: []}]",
            Some("6:14: an empty `from` list means any peer"),
        ),
        (
            "podSelector: {matchLabels: {a: b}}\ningress: [{ports: []}]",
            Some("6:14: an empty `ports` list means any port"),
        ),
        (
            "podSelector: {matchLabels: {a: b}}\ningress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]",
            Some("6:14: `0.0.0.0/0` matches no IPv6 address"),
        ),
        (
            "podSelector: {matchLabels: {a: b}}\n\
             ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}]",
            None,
        ),
        (
            "podSelector: {matchLabels: {a: b}}\ningress: [{from: [{ipBlock: {cidr: 10.66.0.10/4}}]}]",
            Some("6:38: `10.66.0.10/4` has host bits set and means `0.0.0.0/4`"),
        ),
        (
            "podSelector: {matchLabels: {a: b}}\ningress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, \
             except: [10.1.0.0/16, 10.1.1.0/24]}}]}]",
            Some("6:72: `10.1.1.0/24` overlaps the exception `10.1.0.0/16`"),
        ),
    ] {
        let expected: Vec<_> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(warnings(spec), expected, "{spec}");
    }
}
