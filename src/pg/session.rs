//! The settings of a session, by its profile, whatever the role's defaults are.
//!
//! Owns the one table of settings ([`SessionProfile::settings`]). The same entries become `set` for
//! a session, or `set local` for a transaction where connections are not sessions.

use std::time::Duration;

/// The use of a session, which decides its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionProfile {
    /// Short calls of the stages. Commits asynchronously: a status is written in the transaction
    /// that removes its queue row, so a crash of the server undoes both or neither.
    Worker,
    /// The same calls by a backfill at full speed. Each commit flushes its own WAL, about a
    /// megabyte; otherwise the next heartbeat's commit would have to wait for it.
    Bulk,
    /// The LISTEN session, which also holds the leader's lock.
    Listener,
    /// Changes of the schema: no time limit, because an index build has no known duration.
    Migration,
    /// Reads, also on a standby: the progress of an index build for the migrator, and the demo's.
    Reader,
    /// Reads of the read API.
    Api {
        /// The server's limit on one statement.
        statement_timeout: Duration,
    },
    /// One read-only transaction, opened with the connection. Nothing outlives the transaction, so
    /// a transaction pooler passes none of these settings to its other clients.
    ReadOnlyTransaction,
}

/// Whether a connection is a session of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SessionMode {
    /// Detect at start.
    Auto,
    /// Connections are sessions: LISTEN and session locks work.
    Session,
    /// Connections change hands between transactions (`PgBouncer`'s `pool_mode = transaction`).
    Transaction,
}

/// The transaction that fills a GIN pending list flushes it while it holds its row locks. With the
/// server's default of 4 MB the longest call of a backfill (100 runs) took 82 ms, with this limit
/// 34 ms; the sum of all calls was the same.
const PENDING_LIST_LIMIT: &str = "256kB";

/// For a backfill, which flushes the list between its calls, when it holds no lock
/// (`status_indexer.flush_pending_list`). This is the server's default.
const PENDING_LIST_LIMIT_BULK: &str = "4MB";

/// How a setting is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// To a session, or to a transaction.
    Any,
    /// To a session only: it describes the connection, or begins transactions itself.
    Session,
}

/// A name, its value as SQL, and its scope.
type Setting = (&'static str, String, Scope);

impl SessionProfile {
    /// Whether a server in recovery is refused: for writes, which would fail there, and for the
    /// read API, whose answers would be late, unless a replica is configured.
    pub(crate) fn needs_primary(self, is_replica: bool) -> bool {
        match self {
            Self::Worker | Self::Bulk | Self::Listener | Self::Migration => true,
            Self::Api { .. } => !is_replica,
            Self::Reader | Self::ReadOnlyTransaction => false,
        }
    }

    /// The settings: one table for all profiles.
    fn settings(self) -> Vec<Setting> {
        let any = |name, value: &str| (name, value.to_owned(), Scope::Any);
        let session = |name, value: &str| (name, value.to_owned(), Scope::Session);
        let mut settings = vec![
            session("default_transaction_isolation", "'read committed'"),
            session("client_min_messages", "warning"),
            session("tcp_keepalives_idle", "10"),
            session("tcp_keepalives_interval", "3"),
            session("tcp_keepalives_count", "3"),
            session("tcp_user_timeout", "10000"),
            any("search_path", "pg_catalog, pg_temp"),
            // A query over rows that a policy hides fails, instead of returning the others.
            any("row_security", "off"),
            any("jit", "off"),
        ];
        let read_only = match self {
            Self::Worker | Self::Bulk | Self::Listener | Self::Migration => Some("off"),
            Self::Api { .. } => Some("on"),
            Self::Reader | Self::ReadOnlyTransaction => None,
        };
        settings.extend(read_only.map(|value| session("default_transaction_read_only", value)));
        settings.extend(match self {
            Self::Worker | Self::Bulk => {
                let (commit, pending_list) = match self {
                    Self::Bulk => ("local", PENDING_LIST_LIMIT_BULK),
                    _ => ("off", PENDING_LIST_LIMIT),
                };
                vec![
                    any("synchronous_commit", commit),
                    any("lock_timeout", "'100ms'"),
                    any("idle_in_transaction_session_timeout", "'5s'"),
                    any("statement_timeout", "'30s'"),
                    any("gin_pending_list_limit", &format!("'{pending_list}'")),
                ]
            }
            Self::Listener => vec![
                any("lock_timeout", "'100ms'"),
                any("statement_timeout", "'5s'"),
            ],
            Self::Migration => vec![
                any("statement_timeout", "0"),
                any("lock_timeout", "0"),
                any("idle_in_transaction_session_timeout", "'60s'"),
            ],
            Self::Reader | Self::ReadOnlyTransaction => vec![
                any("lock_timeout", "'5s'"),
                any("statement_timeout", "'10min'"),
            ],
            Self::Api { statement_timeout } => vec![
                any("lock_timeout", "'2s'"),
                any(
                    "statement_timeout",
                    &statement_timeout.as_millis().to_string(),
                ),
                any("idle_in_transaction_session_timeout", "'5s'"),
                session("plan_cache_mode", "force_generic_plan"),
                session("enable_sort", "off"),
                session("enable_bitmapscan", "off"),
            ],
        });
        settings
    }

    /// The statements that prepare a new session.
    pub(crate) fn session(self) -> String {
        if self == Self::ReadOnlyTransaction {
            return self.begin();
        }
        let mut sql = String::from("-- session.settings\n");
        for (name, value, _) in self.settings() {
            sql.push_str(&format!("set {name} = {value};\n"));
        }
        if self == Self::Listener {
            // The server ends a LISTEN session that is idle for this long, such as that of a frozen
            // process, and so releases the leader's lock. Servers before 14 do not know the
            // setting, and `set` would fail there.
            sql.push_str(
                "select set_config(name, '5s', false) from pg_settings where name = 'idle_session_timeout';\n",
            );
        }
        sql
    }

    /// The statements that begin a transaction where the connection does not keep settings.
    pub(crate) fn begin(self) -> String {
        let access = match self {
            Self::Reader | Self::Api { .. } | Self::ReadOnlyTransaction => "read only",
            _ => "read write",
        };
        let mut sql =
            format!("-- transaction.settings\nbegin isolation level read committed {access};\n");
        for (name, value, scope) in self.settings() {
            if scope == Scope::Any {
                sql.push_str(&format!("set local {name} = {value};\n"));
            }
        }
        sql
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_has_every_setting_that_is_not_of_the_connection() {
        for profile in [
            SessionProfile::Worker,
            SessionProfile::Bulk,
            SessionProfile::ReadOnlyTransaction,
            SessionProfile::Api {
                statement_timeout: Duration::from_secs(3),
            },
        ] {
            let begin = profile.begin();
            for (name, value, scope) in profile.settings() {
                let local = format!("set local {name} = {value};");
                assert_eq!(begin.contains(&local), scope == Scope::Any, "{local}");
            }
        }
    }
}
