//! No secret leaves the process, wherever it was given and whatever fails.
//!
//! Owns the list of places and of failures. Searches what the process prints and logs, what it serves,
//! what the system shows of it, and what the database server shows.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Output;

use testkit::daemon::{Daemon, Launch};
use testkit::database::Database;
use testkit::requirement::left_out;
use testkit::wait::{eventually, within};

use super::cli::text;
use crate::connect::secrets::server_with_password;

const SECRET: &str = "s3cr3t/phr@se";

/// As it is written in a URI.
const ENCODED: &str = "s3cr3t%2Fphr%40se";

const TOKEN: &str = "t0ken-t0ken-t0ken-t0ken";

/// Parts of the secrets that no text may contain.
const TRACES: [&str; 3] = ["s3cr3t", "phr@se", "t0ken-t0ken"];

const SOON: std::time::Duration = std::time::Duration::from_secs(60);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    Login,
    Port,
    Tls,
    Syntax,
}

/// The files that hold secrets, and the configurations that lead to them.
struct Places {
    directory: tempfile::TempDir,
    port: u16,
    dbname: String,
}

impl Places {
    fn new(database: &Database) -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            port: database.config().get_ports()[0],
            dbname: database.name().to_owned(),
        }
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, content).expect("our own directory");
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&path, private).expect("our own file");
        path.display().to_string()
    }

    /// Each place of a secret: the variables that configure it, with this fault.
    fn all(&self, fault: Fault) -> Vec<Vec<(&'static str, String)>> {
        let port = if fault == Fault::Port { 1 } else { self.port };
        // Another password, which is as secret.
        let (plain, encoded) = match fault {
            Fault::Login => (format!("{SECRET}x"), format!("{ENCODED}x")),
            _ => (SECRET.to_owned(), ENCODED.to_owned()),
        };
        let more = match fault {
            Fault::Tls => "&sslmode=require",
            _ => "",
        };
        let (dbname, at) = (&self.dbname, format!("127.0.0.1:{port}"));
        let uri = |user: &str| match fault {
            Fault::Syntax => format!("postgresql://{user}@{at}x/{dbname}?{plain}"),
            _ => format!("postgresql://{user}@{at}/{dbname}?connect_timeout=5{more}"),
        };
        let (with, without) = (uri(&format!("indexer:{encoded}")), uri("indexer"));
        let pairs = match fault {
            Fault::Syntax => format!("host=127.0.0.1 port={port} password='{plain}"),
            _ => format!(
                "host=127.0.0.1 port={port} user=indexer dbname={dbname} password='{plain}' {}",
                more.replace('&', " ")
            ),
        };
        let service = match fault {
            Fault::Syntax => format!("[s]\npassword{plain}\n"),
            _ => format!("[s]\npassword={plain}\n"),
        };
        let passfile = self.file("passfile", &format!("*:*:*:*:{plain}\n"));
        let parts = |password: (&'static str, String)| {
            let mode = if fault == Fault::Tls { "require" } else { "" };
            vec![
                ("MF_METADATA_DB_HOST", "127.0.0.1".to_owned()),
                ("MF_METADATA_DB_PORT", port.to_string()),
                ("MF_METADATA_DB_USER", "indexer".to_owned()),
                ("MF_METADATA_DB_NAME", dbname.clone()),
                ("MF_METADATA_DB_SSL_MODE", mode.to_owned()),
                password,
            ]
        };
        vec![
            vec![("DATABASE_URL", with.clone())],
            vec![("MF_METADATA_DB_DSN", pairs)],
            vec![("DATABASE_URL_FILE", self.file("dsn", &with))],
            parts(("MF_METADATA_DB_PSWD", plain.clone())),
            parts((
                "MF_METADATA_DB_PSWD_FILE",
                self.file("password", &format!("{plain}\n")),
            )),
            vec![("DATABASE_URL", without.clone()), ("PGPASSWORD", plain)],
            vec![("DATABASE_URL", without.clone()), ("PGPASSFILE", passfile)],
            vec![
                ("DATABASE_URL", without),
                ("PGSERVICE", "s".to_owned()),
                ("PGSERVICEFILE", self.file("services", &service)),
            ],
        ]
    }

    /// A command with secrets in these variables, tokens in files, and the most verbose log.
    fn launch(&self, database: &Database, args: &[&str], env: &[(&str, String)]) -> Launch {
        let tokens = self.file("tokens", &format!("{TOKEN}\n"));
        let mut launch = Launch::on(database)
            .args(args)
            .env("DATABASE_URL", "")
            .env("STATUS_INDEXER_LOG", "trace")
            .env("STATUS_INDEXER_LOGIN_TIMEOUT", "1")
            .env("STATUS_INDEXER_METRICS_LISTEN", "127.0.0.1:0")
            .env("STATUS_INDEXER_METRICS_TOKEN_FILE", &tokens)
            .env("STATUS_INDEXER_HTTP_TOKEN_FILE", &tokens);
        for (name, value) in env {
            launch = launch.env(name, value);
        }
        launch
    }
}

#[track_caller]
fn check_clean(what: &str, text: &str) {
    for trace in TRACES {
        assert!(!text.contains(trace), "{what} contains {trace}: {text}");
    }
}

fn check_output(args: &[&str], fault: Fault, output: &Output) {
    let text = text(output);
    check_clean(&format!("{args:?} with {fault:?}"), &text);
    match fault {
        // Some commands, such as the help, need no connection.
        Fault::Nothing | Fault::Syntax => {}
        _ => assert!(
            args.contains(&"--help") || !output.status.success(),
            "{args:?} with {fault:?}: {text}"
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_prints_a_secret_wherever_it_is_given_and_whatever_fails() {
    let (server, database) = server_with_password(SECRET).await;
    let places = Places::new(&database);
    // One that works first, so that the others find the objects.
    let all = places.all(Fault::Nothing);
    let output = places
        .launch(&database, &["migrate"], &all[0])
        .output()
        .await;
    assert!(output.status.success(), "{}", text(&output));
    for fault in [
        Fault::Nothing,
        Fault::Login,
        Fault::Port,
        Fault::Tls,
        Fault::Syntax,
    ] {
        for (number, env) in places.all(fault).iter().enumerate() {
            let commands: &[&[&str]] = match (fault, number) {
                // Each command once, with the password in the connection string.
                (Fault::Nothing | Fault::Login, 0) => &[
                    &["migrate", "--wait", "0"],
                    &["migrate", "status"],
                    &["backfill", "--wait", "0"],
                    &["verify"],
                    &["verify", "--json"],
                    &["explain", "F", "1"],
                    &["--help"],
                    &["run", "--help"],
                    &["migrate", "--help"],
                    &["run", "--nonsense"],
                ],
                (Fault::Nothing, _) => &[&["migrate", "status"], &["explain", "--help"]],
                _ => &[&["migrate", "status"]],
            };
            for args in commands {
                let output = places.launch(&database, args, env).output().await;
                check_output(args, fault, &output);
                if fault == Fault::Nothing && *args == ["migrate", "status"] {
                    assert!(output.status.success(), "{env:?}: {}", text(&output));
                }
            }
        }
    }
    // The daemon ends by itself if every login is refused, or if it is configured wrongly.
    for fault in [Fault::Login, Fault::Syntax] {
        let env = &places.all(fault)[0];
        let output = places.launch(&database, &["run"], env).output().await;
        assert!(!output.status.success());
        check_output(&["run"], fault, &output);
    }
    server.stop().await.expect("it stops");
}

/// What a client without a token, or with one, gets from an address.
async fn served(daemon: &Daemon) -> String {
    let client = reqwest::Client::builder().no_proxy().build();
    let client = client.expect("a plain client");
    let mut all = String::new();
    let api = format!("http://{}", daemon.api().await);
    let metrics = format!("http://{}", daemon.address().await);
    for url in [
        format!("{metrics}/"),
        format!("{metrics}/metrics"),
        format!("{metrics}/readyz"),
        format!("{metrics}/nosuch"),
        format!("{api}/flows/F/runs"),
        format!("{api}/flows/F/runs?status=nosuch"),
        format!("{api}/flows/F/runs/1/status"),
        format!("{api}/openapi.json"),
    ] {
        for token in [None, Some(TOKEN), Some("a-wrong-token-0123")] {
            let mut request = client.get(&url);
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let answer = request.send().await.expect("it answers");
            all += &format!("{url} {} {:?}\n", answer.status(), answer.headers());
            all += &answer.text().await.expect("text");
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_daemon_shows_no_secret() {
    const ACTIVITY: &str = "\
select coalesce(string_agg(concat_ws(' ', application_name, query), ' '), '')
  from pg_stat_activity
 where usename = 'indexer'";
    let (server, database) = server_with_password(SECRET).await;
    let places = Places::new(&database);
    for env in places.all(Fault::Nothing) {
        let daemon = places
            .launch(&database, &["run", "--migrate"], &env)
            .spawn();
        daemon.ready().await;
        check_clean("what is served", &served(&daemon).await);
        if let Ok(line) = fs::read(format!("/proc/{}/cmdline", daemon.pid())) {
            check_clean("the command line", &String::from_utf8_lossy(&line));
        }
        let client = database.client().await;
        let row = client
            .query_one(ACTIVITY, &[])
            .await
            .expect("the view can be read");
        let activity: String = row.get(0);
        assert!(activity.contains("status-indexer"), "{activity}");
        check_clean("pg_stat_activity", &activity);

        // Its connections are lost, and the server expects another password.
        let lost = "\
alter role indexer password 'another';
select pg_terminate_backend(pid) from pg_stat_activity where usename = 'indexer'";
        client
            .batch_execute(lost)
            .await
            .expect("tests are superuser");
        let ended = within(SOON, "the daemon gives up", daemon.exit()).await;
        assert_eq!(ended.code(), Some(1));
        check_clean("the log", &format!("{:?}", daemon.log()));
        let back = format!(
            "set password_encryption = 'scram-sha-256'; alter role indexer password '{SECRET}'"
        );
        client
            .batch_execute(&back)
            .await
            .expect("tests are superuser");
    }
    server.stop().await.expect("it stops");
}

/// A user without rights, for a process that must not be able to read another of the same user.
const NOBODY: u32 = 65_534;

/// Whether a user without rights can execute the binary: every directory above it is open.
fn is_reachable(path: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .all(|directory| fs::metadata(directory).is_ok_and(|metadata| metadata.mode() & 0o001 != 0))
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn processes_of_the_same_user_cannot_read_the_memory_or_the_environment() {
    let database = Database::fresh().await;
    let binary = testkit::product::path();
    let own = fs::metadata("/proc/self").expect("the system has it");
    let as_root = own.uid() == 0;
    if as_root && !is_reachable(&binary) {
        left_out("needs a binary that another user can execute");
        return;
    }
    let mut command = testkit::product::command();
    command
        .args(["run", "--migrate", "--http-listen", "off"])
        .args(["--metrics-listen", "127.0.0.1:0"])
        .env("DATABASE_URL", database.url())
        .env("MF_METADATA_DB_PSWD", SECRET)
        .kill_on_drop(true);
    if as_root {
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child = command.spawn().expect("the binary can be executed");
    let pid = child.id().expect("it has not been reaped");
    let read = async |name: &str| {
        let mut reader = tokio::process::Command::new("cat");
        reader.arg(format!("/proc/{pid}/{name}"));
        if as_root {
            reader.uid(NOBODY).gid(NOBODY);
        }
        let output = reader.output().await.expect("cat is installed");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    // Before the program runs, the process belongs to the shell that starts it.
    eventually(SOON, "the environment cannot be read", async || {
        read("environ").await.contains("Permission denied")
    })
    .await;
    assert!(read("maps").await.contains("Permission denied"));
    assert!(read("status").await.contains("status-indexer"));
    child.kill().await.expect("it is ours");
}
