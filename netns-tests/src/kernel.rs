//! The BPF programs alone, driven packet by packet with `BPF_PROG_TEST_RUN`.
//!
//! A [`Kernel`] lives in a network namespace of its own and treats loopback as the interface of one
//! workload, `web`. Peers exist only as addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use daemon::dataplane::{
    self, CtSnapshot, Dataplane, DataplaneConfig, DataplaneError, Desired, DesiredEndpoint,
    EventReader,
};
use dataplane_common::event::{EventKind, FlowEvent};
use dataplane_common::stats::Verdict;
use dataplane_common::{Direction, DropReason, LAYOUT_VERSION};
use policy::compile::{Interner, compile};
use policy::model::{Estate, Mode, Modes, Unselected, Workload};
use policy::parse::{PolicySet, parse_documents};
use testbed::Netns;

/// Index of loopback, which `BPF_PROG_TEST_RUN` uses as the packet's device.
const LOOPBACK: u32 = 1;

/// What one packet did.
#[derive(Debug)]
pub struct Observed {
    /// Whether the packet went on.
    pub passed: bool,
    /// Counter that moved.
    pub verdict: Verdict,
    /// Reason of that counter.
    pub reason: Option<DropReason>,
    /// Events sent.
    pub events: Vec<FlowEvent>,
}

impl Observed {
    /// Kinds of the events.
    #[must_use]
    pub fn kinds(&self) -> Vec<EventKind> {
        self.events
            .iter()
            .filter_map(|event| EventKind::from_u8(event.kind))
            .collect()
    }
}

/// The programs with one workload and a policy.
pub struct Kernel {
    /// The dataplane under test.
    pub dataplane: Dataplane,
    reader: EventReader,
    interner: Interner,
    estate: Estate,
    policies: PolicySet,
    modes: Modes,
    unselected: Unselected,
    /// How long after attaching directions are unsure.
    pub unsure_for: Duration,
    bpffs: PathBuf,
}

/// Runs `test` with a fresh kernel side in a fresh namespace, and removes both afterwards.
///
/// # Panics
/// When `test` does, or when the lab cannot be made.
pub fn with_kernel(policies: &str, mode: Mode, test: impl FnOnce(&mut Kernel) + Send) {
    with_configured_kernel(policies, mode, |_| {}, test);
}

/// [`with_kernel`] with a changed configuration.
///
/// # Panics
/// As [`with_kernel`].
pub fn with_configured_kernel(
    policies: &str,
    mode: Mode,
    configure: impl FnOnce(&mut DataplaneConfig) + Send,
    test: impl FnOnce(&mut Kernel) + Send,
) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("pc-prog-{}-{number}", std::process::id());
    let netns = Netns::create(&name).expect("a namespace can be made");
    let bpffs = PathBuf::from(format!("/sys/fs/bpf/{name}"));
    let outcome = netns.run(|| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut config = DataplaneConfig::new(&bpffs);
            configure(&mut config);
            let mut kernel = Kernel::open(&config, policies, mode).expect("the object loads");
            kernel.apply().expect("the policy applies");
            test(&mut kernel);
        }))
    });
    let cleaned = dataplane::detach(&bpffs);
    netns.remove().expect("the namespace can be removed");
    if let Err(panic) = outcome.expect("the namespace can be entered") {
        std::panic::resume_unwind(panic);
    }
    cleaned.expect("nothing is left behind");
    assert!(!bpffs.exists(), "{} is left behind", bpffs.display());
}

impl Kernel {
    fn open(config: &DataplaneConfig, policies: &str, mode: Mode) -> Result<Self, DataplaneError> {
        let (dataplane, reader) = Dataplane::open(config)?;
        let mut kernel = Self {
            dataplane,
            reader,
            interner: Interner::new(),
            estate: estate(),
            policies: PolicySet::new(),
            modes: Modes {
                default: mode,
                groups: BTreeMap::new(),
            },
            unselected: Unselected::Deny,
            unsure_for: Duration::ZERO,
            bpffs: config.bpffs.clone(),
        };
        kernel.set_policies(policies);
        Ok(kernel)
    }

    /// Pretends the daemon died and another one took over the pinned maps.
    ///
    /// # Panics
    /// When the pinned state cannot be adopted.
    pub fn reopen(&mut self) {
        let (dataplane, reader) =
            Dataplane::open(&DataplaneConfig::new(&self.bpffs)).expect("pinned maps are adopted");
        self.dataplane = dataplane;
        self.reader = reader;
    }

    /// Replaces the policies (YAML) without applying them.
    ///
    /// # Panics
    /// When the test's YAML is wrong.
    pub fn set_policies(&mut self, yaml: &str) {
        let parsed = parse_documents("test.yaml", yaml).expect("the test's policies parse");
        self.policies = PolicySet::new();
        for document in parsed.policies {
            self.policies.insert(document);
        }
    }

    /// Changes the mode without applying it.
    pub fn set_mode(&mut self, mode: Mode) {
        self.modes.default = mode;
    }

    /// Changes what workloads get that no policy selects, without applying it.
    pub fn set_unselected(&mut self, unselected: Unselected) {
        self.unselected = unselected;
    }

    /// The workloads; a change takes effect with [`Kernel::apply`].
    pub fn estate_mut(&mut self) -> &mut Estate {
        &mut self.estate
    }

    /// Brings policies, modes and estate into force.
    ///
    /// # Errors
    /// What the dataplane refuses.
    ///
    /// # Panics
    /// When `web` could not be attached.
    pub fn apply(&mut self) -> Result<dataplane::Applied, DataplaneError> {
        let compiled = compile(
            &self.estate,
            &self.policies,
            &self.modes,
            self.unselected,
            &mut self.interner,
        )
        .expect("numbers do not run out in a test");
        let web = &self.estate.workloads[0];
        let endpoint = DesiredEndpoint {
            workload: 0,
            ifindex: LOOPBACK,
            ifname: "lo".to_owned(),
            network: 0,
            addresses: web.addresses.clone(),
            learn_addresses: web.addresses.is_empty(),
            unsure_for: self.unsure_for,
        };
        let desired = Desired {
            compiled: Arc::new(compiled),
            endpoints: vec![endpoint],
        };
        let applied = self.dataplane.apply(&desired)?;
        applied.endpoints[0]
            .result
            .as_ref()
            .expect("web is attached");
        Ok(applied)
    }

    /// Takes `web` off the interface and puts it back as a new endpoint.
    ///
    /// # Panics
    /// When the dataplane refuses.
    pub fn reattach(&mut self) {
        self.remove_endpoint();
        self.apply().expect("the policy applies");
    }

    /// Leaves the programs without any endpoint.
    ///
    /// # Panics
    /// When the dataplane refuses.
    pub fn remove_endpoint(&mut self) {
        let compiled = Arc::new(policy::compile::Compiled::default());
        let desired = Desired {
            compiled,
            endpoints: Vec::new(),
        };
        self.dataplane
            .apply(&desired)
            .expect("endpoints can be removed");
    }

    /// Takes all waiting events and returns their number.
    pub fn drain_events(&mut self) -> usize {
        self.reader.drain(usize::MAX, |_| {})
    }

    /// Runs one packet that `web` sends.
    pub fn egress(&mut self, frame: &[u8]) -> Observed {
        self.run(Direction::Egress, frame)
    }

    /// Runs one packet that `web` receives.
    pub fn ingress(&mut self, frame: &[u8]) -> Observed {
        self.run(Direction::Ingress, frame)
    }

    /// Runs one packet and reports every trace it left. Exactly one counter must move, by one.
    ///
    /// # Panics
    /// When the kernel refuses the frame, or the packet is not counted exactly once.
    pub fn run(&mut self, direction: Direction, frame: &[u8]) -> Observed {
        let before = self.dataplane.counters().expect("counters are readable");
        let (passed, _) = self
            .dataplane
            .test_run(direction, frame, 1)
            .expect("the kernel takes the frame");
        let after = self.dataplane.counters().expect("counters are readable");
        let mut events = Vec::new();
        self.reader.drain(usize::MAX, |event| events.push(*event));
        let mut moved = Vec::new();
        for row in &after.packets {
            let old = before
                .packets
                .iter()
                .find(|old| {
                    (old.verdict, old.direction, old.reason)
                        == (row.verdict, row.direction, row.reason)
                })
                .map_or(0, |old| old.packets);
            if row.packets != old {
                moved.push((row.clone(), row.packets - old));
            }
        }
        assert_eq!(
            moved.len(),
            1,
            "one counter moves per packet, not {moved:?}"
        );
        let (row, by) = &moved[0];
        assert_eq!(*by, 1, "a packet counts once");
        assert_eq!(row.direction, direction.as_str());
        let verdict = [
            Verdict::Forwarded,
            Verdict::Dropped,
            Verdict::Audit,
            Verdict::Redirected,
        ]
        .into_iter()
        .find(|verdict| verdict.as_str() == row.verdict)
        .expect("a known verdict");
        let reason = DropReason::ALL
            .iter()
            .copied()
            .find(|reason| row.reason == Some(reason.as_str()));
        assert_eq!(
            passed,
            verdict != Verdict::Dropped,
            "the action follows the verdict"
        );
        Observed {
            passed,
            verdict,
            reason,
            events,
        }
    }

    /// The only flow in conntrack.
    ///
    /// # Panics
    /// When there is none, or more than one.
    pub fn only_flow(&self) -> CtSnapshot {
        let flows = self.flows();
        assert_eq!(flows.len(), 1, "one flow is tracked, not {flows:#?}");
        flows[0]
    }

    /// All flows in conntrack.
    ///
    /// # Panics
    /// When conntrack cannot be read.
    pub fn flows(&self) -> Vec<CtSnapshot> {
        self.dataplane.conntrack().expect("conntrack is readable")
    }

    /// Runs one packet and returns only whether it passed and what it told: the quick way, for tests
    /// that look at maps themselves.
    ///
    /// # Panics
    /// When the kernel refuses the frame.
    pub fn judge(&mut self, direction: Direction, frame: &[u8]) -> (bool, Vec<FlowEvent>) {
        let (passed, _) = self
            .dataplane
            .test_run(direction, frame, 1)
            .expect("the kernel takes the frame");
        let mut events = Vec::new();
        self.reader.drain(usize::MAX, |event| events.push(*event));
        (passed, events)
    }

    /// Where the maps are pinned.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.bpffs.join(format!("v{LAYOUT_VERSION}")).join("maps")
    }

    /// Meaning of the numbers in events and entries.
    #[must_use]
    pub const fn interner(&self) -> &Interner {
        &self.interner
    }

    /// Name of the rule an event or entry names.
    #[must_use]
    pub fn rule(&self, id: u32) -> Option<String> {
        self.interner.rule(id).map(|rule| rule.policy)
    }
}

/// `web` (10.0.0.2, fd00::2), `api` (.3), `db` (.4) in namespace `shop`; the host is .1.
fn estate() -> Estate {
    let workload = |name: &str, last: u8| Workload {
        name: format!("{name}-1"),
        namespace: "shop".to_owned(),
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        addresses: vec![
            IpAddr::from([10, 0, 0, last]),
            format!("fd00::{last}").parse().expect("an address"),
        ],
        ports: Vec::new(),
        group: format!("shop/{name}"),
    };
    Estate {
        namespaces: BTreeMap::new(),
        workloads: vec![workload("web", 2), workload("api", 3), workload("db", 4)],
        host_addresses: vec![
            IpAddr::from([10, 0, 0, 1]),
            "fd00::1".parse().expect("an address"),
        ],
    }
}
