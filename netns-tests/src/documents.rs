//! Inventories and policies, built from the workloads of a lab.

use std::fmt::Write as _;

use testbed::Workload;

/// An inventory document, built from workloads of a lab.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Inventory {
    namespaces: String,
    workloads: String,
    ports: bool,
}

impl Inventory {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// A namespace and its labels.
    pub fn namespace(mut self, name: &str, labels: &[(&str, &str)]) -> Self {
        let labels = map(labels);
        let _ = writeln!(self.namespaces, "- {{name: {name}, labels: {labels}}}");
        self
    }

    /// A workload under its own name, by the host side of its first interface.
    pub fn workload(self, workload: &Workload, namespace: &str, labels: &[(&str, &str)]) -> Self {
        let name = &workload.name;
        self.entry(name, namespace, labels, workload)
    }

    /// A workload under another name.
    pub fn entry(
        mut self,
        name: &str,
        namespace: &str,
        labels: &[(&str, &str)],
        workload: &Workload,
    ) -> Self {
        let labels = map(labels);
        let interface = &workload.interfaces[0].host_name;
        let ips: Vec<String> = workload
            .addresses()
            .iter()
            .map(|ip| format!("\"{ip}\""))
            .collect();
        let _ = write!(
            self.workloads,
            "- name: {name}\n  namespace: {namespace}\n  labels: {labels}\n  \
             interface: {interface}\n  ips: [{}]\n",
            ips.join(", ")
        );
        self.ports = false;
        self
    }

    /// A named TCP port of the workload added last.
    pub fn port(mut self, name: &str, port: u16) -> Self {
        if !self.ports {
            self.workloads.push_str("  ports:\n");
            self.ports = true;
        }
        let _ = writeln!(self.workloads, "  - {{name: {name}, port: {port}}}");
        self
    }

    /// The document.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = "kind: Inventory\n".to_owned();
        for (key, entries) in [
            ("namespaces", &self.namespaces),
            ("workloads", &self.workloads),
        ] {
            if !entries.is_empty() {
                let _ = write!(text, "{key}:\n{entries}");
            }
        }
        text
    }
}

impl From<Inventory> for String {
    fn from(inventory: Inventory) -> Self {
        inventory.text()
    }
}

fn map(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}: \"{value}\""))
        .collect();
    format!("{{{}}}", pairs.join(", "))
}

/// A NetworkPolicy in namespace `namespace`: `spec` is the text below `spec:`, without indentation.
#[must_use]
pub fn policy(namespace: &str, name: &str, spec: &str) -> String {
    let mut text = format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\n  \
         namespace: {namespace}\nspec:\n"
    );
    for line in spec.trim_matches('\n').lines() {
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// Every workload of `shop` isolated in both directions.
#[must_use]
pub fn default_deny() -> String {
    policy(
        "shop",
        "default-deny",
        "podSelector: {}\npolicyTypes: [Ingress, Egress]",
    )
}

/// `from` may open TCP `port` on `to` (`app` labels in `shop`): the egress and the ingress half.
#[must_use]
pub fn allow(from: &str, to: &str, port: u16) -> String {
    allow_egress(from, to, port) + &allow_ingress(from, to, port)
}

/// The source's half of [`allow`].
#[must_use]
pub fn allow_egress(from: &str, to: &str, port: u16) -> String {
    policy(
        "shop",
        &format!("{from}-egress-{to}-{port}"),
        &format!(
            "podSelector: {{matchLabels: {{app: {from}}}}}\npolicyTypes: [Egress]\negress:\n- to:\n  \
             - podSelector: {{matchLabels: {{app: {to}}}}}\n  ports:\n  \
             - {{protocol: TCP, port: {port}}}"
        ),
    )
}

/// The destination's half of [`allow`].
#[must_use]
pub fn allow_ingress(from: &str, to: &str, port: u16) -> String {
    policy(
        "shop",
        &format!("{to}-ingress-{from}-{port}"),
        &format!(
            "podSelector: {{matchLabels: {{app: {to}}}}}\npolicyTypes: [Ingress]\ningress:\n\
             - from:\n  - podSelector: {{matchLabels: {{app: {from}}}}}\n  ports:\n  \
             - {{protocol: TCP, port: {port}}}"
        ),
    )
}
