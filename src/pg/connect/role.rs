//! The check of the server's role: `target_session_attrs`, and the primary for a connection that writes.
//!
//! Promises that a connection that writes is never one to a server in recovery, whatever the parameters
//! say.

use crate::pg::params::TargetSession;

pub(super) const ROLE: &str = "\
-- session.role
select pg_catalog.pg_is_in_recovery(),
       pg_catalog.current_setting('transaction_read_only')";

/// What a connection needs of its server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    session: TargetSession,
    /// The primary, whatever the parameters say.
    primary: bool,
}

impl Demand {
    /// One, or two that are tried in turn.
    pub(super) fn of(session: TargetSession, primary: bool) -> Vec<Self> {
        let sessions = match session {
            TargetSession::PreferStandby if primary => vec![TargetSession::Any],
            TargetSession::PreferStandby => vec![TargetSession::Standby, TargetSession::Any],
            session => vec![session],
        };
        let demand = |session| Self { session, primary };
        sessions.into_iter().map(demand).collect()
    }

    /// Any server at all.
    pub(super) fn none() -> Self {
        Self {
            session: TargetSession::Any,
            primary: false,
        }
    }

    pub(super) fn is_none(self) -> bool {
        !self.primary && self.session == TargetSession::Any
    }

    /// Why a server in this state is refused.
    pub(super) fn refuse(self, in_recovery: bool, read_only: bool) -> Option<&'static str> {
        if self.primary && in_recovery {
            return Some("the server is in recovery (a standby), and the primary is needed");
        }
        match self.session {
            TargetSession::ReadWrite if in_recovery || read_only => {
                Some("the server is read-only, and target_session_attrs is read-write")
            }
            TargetSession::ReadOnly if !in_recovery && !read_only => {
                Some("the server accepts writes, and target_session_attrs is read-only")
            }
            TargetSession::Primary if in_recovery => {
                Some("the server is in recovery, and target_session_attrs is primary")
            }
            TargetSession::Standby if !in_recovery => {
                Some("the server is not in recovery, and the parameters prefer a standby")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_writes_needs_the_primary_whatever_the_parameters_say() {
        for session in [
            TargetSession::Any,
            TargetSession::ReadWrite,
            TargetSession::ReadOnly,
            TargetSession::Primary,
            TargetSession::Standby,
            TargetSession::PreferStandby,
        ] {
            for demand in Demand::of(session, true) {
                assert!(demand.refuse(true, true).is_some(), "{session:?}");
            }
        }
    }

    #[test]
    fn target_session_attrs_mean_what_they_mean_in_libpq() {
        // In recovery, read-only by a setting, and neither.
        let servers = [(true, true), (false, true), (false, false)];
        for (session, accepted) in [
            (TargetSession::Any, [true, true, true]),
            (TargetSession::ReadWrite, [false, false, true]),
            (TargetSession::ReadOnly, [true, true, false]),
            (TargetSession::Primary, [false, true, true]),
            (TargetSession::Standby, [true, false, false]),
            (TargetSession::PreferStandby, [true, true, true]),
        ] {
            let demands = Demand::of(session, false);
            let accepts = servers.map(|(recovery, read_only)| {
                let refuses = |demand: &Demand| demand.refuse(recovery, read_only).is_some();
                !demands.iter().all(refuses)
            });
            assert_eq!(accepts, accepted, "{session:?}");
        }
    }
}
