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

/// One setting of a profile.
#[derive(Debug)]
struct Setting {
    name: &'static str,
    /// As SQL.
    value: String,
    scope: Scope,
    /// The first version of the server that knows it, in the form of `server_version_num`. `set` would
    /// fail on an older one.
    since: u32,
}

impl Setting {
    /// The statement that applies it to the session or, if `local`, to the transaction.
    fn statement(&self, local: bool) -> String {
        let Self {
            name, value, since, ..
        } = self;
        if *since > 0 {
            return format!(
                "select pg_catalog.set_config('{name}', {value}, {local}) \
                 where pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= {since};\n"
            );
        }
        let local = if local { "local " } else { "" };
        format!("set {local}{name} = {value};\n")
    }
}

/// What a plan may use: a role's default would make a short call read whole tables.
const PLANS: [&str; 6] = [
    "enable_indexscan",
    "enable_indexonlyscan",
    "enable_bitmapscan",
    "enable_nestloop",
    "enable_seqscan",
    "enable_sort",
];

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
        let setting = |name, value: &str, scope, since| Setting {
            name,
            value: value.to_owned(),
            scope,
            since,
        };
        let any = |name, value: &str| setting(name, value, Scope::Any, 0);
        let session = |name, value: &str| setting(name, value, Scope::Session, 0);
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
            // Forms of text: of numbers in JSON, of names and literals in the migrator's statements.
            any("extra_float_digits", "1"),
            any("quote_all_identifiers", "off"),
            any("standard_conforming_strings", "on"),
            // The other limits are per statement, and this one would end the session.
            setting("transaction_timeout", "'0'", Scope::Any, 170_000),
        ];
        // The server ends a LISTEN session that is idle for this long, such as that of a frozen process,
        // and so releases the leader's lock. A pool keeps its sessions.
        let idle = if self == Self::Listener {
            "'5s'"
        } else {
            "'0'"
        };
        settings.push(setting(
            "idle_session_timeout",
            idle,
            Scope::Session,
            140_000,
        ));
        settings.extend(PLANS.map(|name| any(name, "on")));
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
                any("idle_in_transaction_session_timeout", "'5s'"),
            ],
            Self::Migration => vec![
                any("statement_timeout", "0"),
                any("lock_timeout", "0"),
                any("idle_in_transaction_session_timeout", "'60s'"),
            ],
            Self::Reader | Self::ReadOnlyTransaction => vec![
                any("lock_timeout", "'5s'"),
                any("statement_timeout", "'10min'"),
                // Between two statements a command may wait for the reader of its output.
                any("idle_in_transaction_session_timeout", "'10min'"),
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
        // The role's own limits end first, and the compilation of the statements that follow.
        settings.sort_by_key(|setting| {
            let first = setting.name == "jit" || setting.name.ends_with("_timeout");
            !first
        });
        settings
    }

    /// The statements that prepare a new session.
    pub(crate) fn session(self) -> String {
        if self == Self::ReadOnlyTransaction {
            return self.begin();
        }
        let mut sql = String::from("-- session.settings\n");
        for setting in self.settings() {
            sql.push_str(&setting.statement(false));
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
        for setting in self.settings() {
            if setting.scope == Scope::Any {
                sql.push_str(&setting.statement(true));
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
            for setting in profile.settings() {
                let local = setting.statement(true);
                assert_eq!(
                    begin.contains(&local),
                    setting.scope == Scope::Any,
                    "{local}"
                );
            }
        }
    }
}
