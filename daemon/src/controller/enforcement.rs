//! The kernel as the controller sees it, so that its logic can be tested without one.

use crate::dataplane::{Applied, Counters, CtSnapshot, Dataplane, Desired};

/// Why the kernel refused.
pub type EnforcementError = Box<dyn std::error::Error + Send + Sync>;

/// What the controller asks of the kernel; see [`Dataplane`] for the contract.
pub trait Enforcement: Send + 'static {
    /// Makes the kernel enforce `desired` and returns when it does.
    ///
    /// # Errors
    /// What was in force stays in force.
    fn apply(&mut self, desired: &Desired) -> Result<Applied, EnforcementError>;

    /// Every flow in conntrack.
    ///
    /// # Errors
    /// A map that cannot be read.
    fn conntrack(&self) -> Result<Vec<CtSnapshot>, EnforcementError>;

    /// Removes dead flows and returns their final state.
    ///
    /// # Errors
    /// A map that cannot be read or written.
    fn expire(&mut self, now_ns: u64) -> Result<Vec<CtSnapshot>, EnforcementError>;

    /// Counters.
    ///
    /// # Errors
    /// A map that cannot be read.
    fn counters(&self) -> Result<Counters, EnforcementError>;
}

impl Enforcement for Dataplane {
    fn apply(&mut self, desired: &Desired) -> Result<Applied, EnforcementError> {
        Ok(Self::apply(self, desired)?)
    }

    fn conntrack(&self) -> Result<Vec<CtSnapshot>, EnforcementError> {
        Ok(Self::conntrack(self)?)
    }

    fn expire(&mut self, now_ns: u64) -> Result<Vec<CtSnapshot>, EnforcementError> {
        Ok(Self::expire(self, now_ns)?)
    }

    fn counters(&self) -> Result<Counters, EnforcementError> {
        Ok(Self::counters(self)?)
    }
}
