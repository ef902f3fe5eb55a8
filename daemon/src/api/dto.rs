//! The JSON of the API: what requests and answers look like, for the server and the command line
//! alike. Fields are added freely; none changes its meaning.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use policy::evaluate::RuleRef;
use policy::model::{Labels, Mode, Unselected};
use serde::{Deserialize, Serialize};

use crate::preflight::Finding;

/// Mode names in JSON.
pub mod mode_name {
    use policy::model::Mode;
    use serde::{Deserialize, Deserializer, Serializer};

    /// The lower-case name.
    #[must_use]
    pub const fn of(mode: Mode) -> &'static str {
        match mode {
            Mode::Discover => "discover",
            Mode::Monitor => "monitor",
            Mode::Protect => "protect",
        }
    }

    /// The mode with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Mode> {
        [Mode::Discover, Mode::Monitor, Mode::Protect]
            .into_iter()
            .find(|&mode| of(mode) == name)
    }

    /// Writes the name.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(of(*mode))
    }

    /// Reads a name.
    ///
    /// # Errors
    /// When it is no mode.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
        let name = String::deserialize(deserializer)?;
        parse(&name).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{name}` is no mode: use discover, monitor or protect"
            ))
        })
    }
}

/// Every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What failed and why.
    pub error: String,
    /// The way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Single findings, e.g. one for each mistake in a document.
    #[serde(default)]
    pub details: Vec<String>,
}

/// A file's name and text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// File name or other place, for messages.
    pub source: String,
    /// The text, with any number of YAML documents.
    pub text: String,
}

/// Body of `policies/apply`, `policies/replace` and `policies/check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// Documents.
    pub documents: Vec<Document>,
}

/// Body of `policies/delete`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// `namespace/name`, or a name in the namespace `default`.
    #[serde(default)]
    pub names: Vec<String>,
    /// Documents whose policies to delete.
    #[serde(default)]
    pub documents: Vec<Document>,
}

/// What a change did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Generation in force in the kernel when this was answered.
    pub generation: u32,
    /// Names that are new.
    #[serde(default)]
    pub added: Vec<String>,
    /// Names whose content changed.
    #[serde(default)]
    pub changed: Vec<String>,
    /// Names that are gone.
    #[serde(default)]
    pub removed: Vec<String>,
    /// Names that stayed as they were.
    #[serde(default)]
    pub unchanged: Vec<String>,
    /// Remarks on what was given, e.g. a selector that selects nothing.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Workloads on which the change could not be enforced, with the reason. Everything else is in
    /// force.
    #[serde(default)]
    pub failed: Vec<String>,
}

/// Answer of `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Programs are attached and the first state is in force.
    pub ready: bool,
    /// When the daemon started.
    pub started: Timestamp,
    /// Generation in force.
    pub generation: u32,
    /// Mode of groups without one of their own.
    #[serde(with = "mode_name")]
    pub default_mode: Mode,
    /// What protected workloads get where no policy selects them.
    pub unselected: Unselected,
    /// Number of workloads.
    pub workloads: usize,
    /// Of these, with programs attached.
    pub enforced: usize,
    /// Number of groups by mode name.
    pub groups: BTreeMap<String, usize>,
    /// Number of policies.
    pub policies: usize,
    /// Policy map entries used and available.
    pub policy_entries: Usage,
    /// Learned edges.
    pub edges: usize,
    /// Flow records since the start.
    pub records: u64,
    /// Kernel events lost since the dataplane was loaded.
    pub lost_events: u64,
    /// A mode change that waits for `mode confirm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingMode>,
    /// What needs attention.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// How full something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// In use.
    pub used: u32,
    /// Capacity.
    pub max: u32,
}

/// A mode change that is taken back unless confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingMode {
    /// Group, absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The mode in force until then.
    #[serde(with = "mode_name")]
    pub mode: Mode,
    /// When it is taken back.
    pub revert_at: Timestamp,
}

/// One workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadInfo {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Group.
    pub group: String,
    /// Labels.
    pub labels: Labels,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Host-side interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Where it is known from: inventory, docker, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Numeric identity.
    pub identity: u32,
    /// Mode of its group.
    #[serde(with = "mode_name")]
    pub mode: Mode,
    /// Programs are attached to every interface of it.
    pub enforced: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Name.
    pub group: String,
    /// Mode in force.
    #[serde(with = "mode_name")]
    pub mode: Mode,
    /// The mode is the group's own and not the default.
    pub explicit: bool,
    /// Workloads in it, as `namespace/name`.
    pub workloads: Vec<String>,
    /// Learned edges that begin or end here.
    pub edges: usize,
    /// Policies that select one of its workloads.
    pub policies: Vec<String>,
}

/// Answer of `modes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModesInfo {
    /// Mode of groups without one of their own.
    #[serde(with = "mode_name")]
    pub default: Mode,
    /// Every group that exists or has a mode of its own.
    pub groups: Vec<GroupMode>,
    /// A change that waits for `mode confirm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingMode>,
}

/// Mode of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMode {
    /// Name.
    pub group: String,
    /// Mode in force.
    #[serde(with = "mode_name")]
    pub mode: Mode,
    /// The mode is the group's own and not the default.
    pub explicit: bool,
}

/// Body of `POST modes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeRequest {
    /// Group; absent for all, now and in the future.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Mode.
    #[serde(with = "mode_name")]
    pub mode: Mode,
    /// Take it back after this many seconds unless confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within_seconds: Option<u64>,
}

/// One policy in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Directions it isolates.
    pub types: Vec<String>,
    /// Number of rules.
    pub rules: usize,
    /// Workloads it selects now, as `namespace/name`.
    pub selects: Vec<String>,
    /// Where it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Line of the document in it.
    pub line: u32,
}

/// Answer of `policies/{namespace}/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyText {
    /// The policy.
    #[serde(flatten)]
    pub info: PolicyInfo,
    /// The document as it was given.
    pub text: String,
}

/// Answer of `policies/check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Names of the policies in the documents.
    pub policies: Vec<String>,
    /// Mistakes, each with its place.
    pub errors: Vec<String>,
    /// Remarks, each with its place.
    pub warnings: Vec<String>,
}

/// Answer of `policies/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Opener, as understood.
    pub from: String,
    /// Responder, as understood.
    pub to: String,
    /// Protocol and port, as understood, e.g. `8080/TCP`.
    pub port: String,
    /// What happens to the flow: forwarded, dropped or audit.
    pub verdict: String,
    /// Each address pair and direction that was judged.
    pub steps: Vec<ExplanationStep>,
}

/// What one end's policy says about one address pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplanationStep {
    /// `egress` (the opener's policy) or `ingress` (the responder's).
    pub direction: String,
    /// Workload whose policy judged.
    pub workload: String,
    /// Opener's address.
    pub source: IpAddr,
    /// Responder's address.
    pub destination: IpAddr,
    /// Mode of the workload's group.
    #[serde(with = "mode_name")]
    pub mode: Mode,
    /// forwarded, dropped or audit.
    pub verdict: String,
    /// The deciding rule.
    pub rule: RuleRef,
}

/// Answer of `policies/suggest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuggestionInfo {
    /// Policy documents.
    pub yaml: String,
    /// Names of the policies.
    pub policies: Vec<String>,
    /// Every rule with its reason.
    pub rules: Vec<SuggestedRule>,
    /// What was seen but gives no rule, each with the reason.
    pub left_out: Vec<String>,
}

/// One suggested rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuggestedRule {
    /// Policy it stands in.
    pub policy: String,
    /// What it allows, in words.
    pub rule: String,
    /// What was seen.
    pub evidence: String,
}

/// Body of `inventory/apply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InventoryRequest {
    /// The inventory.
    pub document: Document,
}

/// Answer of `inventory`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryText {
    /// The inventory as it was given; absent when none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<Document>,
}

/// Answer of `counters`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersInfo {
    /// Packets and bytes by outcome; outcomes that never happened are left out.
    pub packets: Vec<PacketCounter>,
    /// Kernel events lost because the ring was full, by kind.
    pub lost_events: BTreeMap<String, u64>,
    /// How full the maps are.
    pub maps: BTreeMap<String, Usage>,
    /// Records a slow part of the daemon did not get, by stage.
    pub dropped_records: BTreeMap<String, u64>,
}

/// Packets of one outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketCounter {
    /// Verdict.
    pub verdict: String,
    /// Direction, from the workload's view.
    pub direction: String,
    /// Drop reason; absent where policy had no objection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Packets.
    pub packets: u64,
    /// Layer 3 bytes.
    pub bytes: u64,
}

/// Answer of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorInfo {
    /// Findings.
    pub findings: Vec<Finding>,
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Generation in force from this moment.
    pub generation: u32,
    /// When.
    pub time: Timestamp,
    /// User id of the caller; absent for the daemon itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Command.
    pub what: String,
    /// What it changed.
    pub detail: String,
}

/// Answer of `detach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// What was removed.
    pub removed: Vec<String>,
}
