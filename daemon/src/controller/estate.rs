//! From the registry's snapshots to the controller: keeps what is in force up to date with the
//! workloads that exist, and adds the addresses the kernel has seen them use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{ControlError, Controller};
use crate::api::dto::Change;
use crate::flow::reader::AddressSeen;
use crate::workload::model::EstateSnapshot;

/// Addresses learned for one interface at most; a workload that makes up addresses gets no more.
const LEARNED_PER_INTERFACE: usize = 16;
/// How long after a failure the estate is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Addresses seen as sources on interfaces whose workload's addresses are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LearnedAddresses {
    by_ifindex: BTreeMap<u32, BTreeSet<IpAddr>>,
}

impl LearnedAddresses {
    /// Takes an address in; `false` if there is nothing new in it: it is known, owned by somebody
    /// else, no unicast address, or one too many.
    pub fn learn(&mut self, seen: AddressSeen, snapshot: &EstateSnapshot) -> bool {
        let learns = snapshot
            .by_ifindex(seen.ifindex)
            .is_some_and(|workload| workload.learn_addresses);
        let owned = snapshot.by_address(seen.address).is_some()
            || snapshot.host_addresses.contains(&seen.address)
            || self
                .by_ifindex
                .iter()
                .any(|(_, addresses)| addresses.contains(&seen.address));
        if !learns || owned || !is_source(seen.address) {
            return false;
        }
        let addresses = self.by_ifindex.entry(seen.ifindex).or_default();
        addresses.len() < LEARNED_PER_INTERFACE && addresses.insert(seen.address)
    }

    /// The snapshot with learned addresses added to their workloads. What was learned on interfaces
    /// that are gone is forgotten.
    #[must_use]
    pub fn overlay(&mut self, snapshot: &Arc<EstateSnapshot>) -> Arc<EstateSnapshot> {
        self.by_ifindex.retain(|&ifindex, _| {
            snapshot
                .by_ifindex(ifindex)
                .is_some_and(|workload| workload.learn_addresses)
        });
        if self.by_ifindex.is_empty() {
            return snapshot.clone();
        }
        let mut overlaid = EstateSnapshot::clone(snapshot);
        for workload in &mut overlaid.workloads {
            for interface in &workload.interfaces {
                for &address in self
                    .by_ifindex
                    .get(&interface.ifindex)
                    .into_iter()
                    .flatten()
                {
                    // The registry may know a better owner by now.
                    let owned = snapshot.by_address(address).is_some()
                        || snapshot.host_addresses.contains(&address);
                    if !owned && !workload.spec.addresses.contains(&address) {
                        workload.spec.addresses.push(address);
                    }
                }
            }
        }
        Arc::new(overlaid)
    }
}

fn is_source(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

/// A request to bring the newest estate into force.
#[derive(Clone, Debug)]
pub struct EstateSync {
    sender: mpsc::Sender<oneshot::Sender<Result<Change, ControlError>>>,
    problem: watch::Receiver<Option<String>>,
}

impl EstateSync {
    /// Puts the registry's present snapshot in force and returns when the kernel enforces it.
    ///
    /// # Errors
    /// [`ControlError`]; the estate in force stays.
    pub async fn sync(&self) -> Result<Change, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.sender
            .send(reply)
            .await
            .map_err(|_| ControlError::Stopped)?;
        answer.await.map_err(|_| ControlError::Stopped)?
    }

    /// Why the newest estate is not in force, if it is not.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }
}

/// The task that follows the registry.
#[derive(Debug)]
pub struct EstateFollower {
    estate: watch::Receiver<Arc<EstateSnapshot>>,
    addresses: mpsc::Receiver<AddressSeen>,
    requests: mpsc::Receiver<oneshot::Sender<Result<Change, ControlError>>>,
    controller: Controller,
    problem: watch::Sender<Option<String>>,
    learned: LearnedAddresses,
}

impl EstateFollower {
    /// A follower of `estate`, and the handle to it.
    #[must_use]
    pub fn new(
        estate: watch::Receiver<Arc<EstateSnapshot>>,
        addresses: mpsc::Receiver<AddressSeen>,
        controller: Controller,
    ) -> (Self, EstateSync) {
        let (sender, requests) = mpsc::channel(16);
        let (problem, problems) = watch::channel(None);
        let follower = Self {
            estate,
            addresses,
            requests,
            controller,
            problem,
            learned: LearnedAddresses::default(),
        };
        let sync = EstateSync {
            sender,
            problem: problems,
        };
        (follower, sync)
    }

    /// Follows until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut retry = false;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = self.estate.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    retry = self.sync().await.is_err();
                }
                Some(seen) = self.addresses.recv() => {
                    let snapshot = self.estate.borrow().clone();
                    if self.learned.learn(seen, &snapshot) {
                        tracing::info!(ifindex = seen.ifindex, address = %seen.address, "address learned");
                        retry = self.sync().await.is_err();
                    }
                }
                Some(reply) = self.requests.recv() => {
                    let result = self.sync().await;
                    retry = result.is_err();
                    // Whoever asked may have gone away.
                    let _ = reply.send(result);
                }
                () = tokio::time::sleep(RETRY_AFTER), if retry => {
                    retry = self.sync().await.is_err();
                }
            }
        }
    }

    async fn sync(&mut self) -> Result<Change, ControlError> {
        let snapshot = self.estate.borrow_and_update().clone();
        let snapshot = self.learned.overlay(&snapshot);
        let result = self.controller.set_estate(snapshot).await;
        if let Err(error) = &result {
            tracing::error!(%error, "workloads changed and the change is not in force");
        }
        let problem = result
            .as_ref()
            .err()
            .map(|error| format!("workloads changed and the change is not in force: {error}"));
        self.problem.send_replace(problem);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::test_shop;

    fn learning_shop() -> Arc<EstateSnapshot> {
        let mut snapshot = EstateSnapshot::clone(&test_shop());
        snapshot.host_addresses = vec!["10.0.0.1".parse().unwrap()];
        let web = &mut snapshot.workloads[1];
        web.spec.addresses.clear();
        web.learn_addresses = true;
        Arc::new(snapshot)
    }

    fn seen(ifindex: u32, address: &str) -> AddressSeen {
        AddressSeen {
            ifindex,
            address: address.parse().unwrap(),
        }
    }

    #[test]
    fn an_address_is_learned_once_and_only_where_addresses_are_not_known() {
        let snapshot = learning_shop();
        let mut learned = LearnedAddresses::default();
        assert!(learned.learn(seen(3, "10.0.0.3"), &snapshot));
        assert!(learned.learn(seen(3, "fd00::3"), &snapshot));
        for (ifindex, address, why) in [
            (3, "10.0.0.3", "known already"),
            (3, "10.0.0.2", "another workload's"),
            (3, "10.0.0.1", "the host's"),
            (3, "0.0.0.0", "unspecified"),
            (3, "224.0.0.1", "multicast"),
            (3, "ff02::1", "multicast"),
            (3, "127.0.0.1", "loopback"),
            (2, "10.0.0.9", "on an interface with known addresses"),
            (99, "10.0.0.9", "on an unknown interface"),
        ] {
            assert!(!learned.learn(seen(ifindex, address), &snapshot), "{why}");
        }
        let overlaid = learned.overlay(&snapshot);
        let addresses = &overlaid.workloads[1].spec.addresses;
        assert_eq!(
            addresses,
            &[
                "10.0.0.3".parse::<IpAddr>().unwrap(),
                "fd00::3".parse().unwrap()
            ]
        );
        assert_eq!(overlaid.workloads[0], snapshot.workloads[0]);
    }

    #[test]
    fn a_workload_that_makes_up_addresses_gets_a_few_only() {
        let snapshot = learning_shop();
        let mut learned = LearnedAddresses::default();
        let taken = (0..200)
            .filter(|n| learned.learn(seen(3, &format!("10.9.0.{n}")), &snapshot))
            .count();
        assert_eq!(taken, LEARNED_PER_INTERFACE);
    }

    #[test]
    fn what_was_learned_goes_with_the_interface_and_yields_to_a_better_owner() {
        let snapshot = learning_shop();
        let mut learned = LearnedAddresses::default();
        assert!(learned.learn(seen(3, "10.0.0.3"), &snapshot));
        let mut owned = EstateSnapshot::clone(&snapshot);
        owned.workloads[0]
            .spec
            .addresses
            .push("10.0.0.3".parse().unwrap());
        let overlaid = learned.overlay(&Arc::new(owned));
        assert!(overlaid.workloads[1].spec.addresses.is_empty());

        let gone = Arc::new(EstateSnapshot::default());
        assert!(learned.overlay(&gone).workloads.is_empty());
        assert_eq!(learned, LearnedAddresses::default());
    }
}
