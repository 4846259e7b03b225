//! The image of `deploy/Dockerfile`, built and run by Podman on a real database.
//!
//! Its last stage is built as it is shipped. The stage that compiles needs a registry, so a directory
//! stands for it: what `deploy/image-root.sh` collects for the binary under test, without its debug
//! information. The hosted workflow builds both stages. Needs Debian, root, Podman, and runc, which
//! also works where crun does not support the mode of the control groups.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::docs::path;
use testkit::database::Database;
use testkit::process::watchdog;
use testkit::requirement::left_out;
use testkit::wait::{eventually, within};

const TIMEOUT: Duration = Duration::from_secs(60);

/// The user `nonroot`, whom the manifests name too.
const USER: &str = "65532";

/// What the whole image may take, and how much of it is left for all that is not the binary.
const MAXIMUM_BYTES: u64 = 20_000_000;
const MAXIMUM_BASE_BYTES: u64 = 5_000_000;

const IMAGE: &str = "localhost/status-indexer:test";

/// Whether this machine can build and run images.
fn can_run_images() -> bool {
    let programs = ["podman", "runc", "readelf", "strip", "dpkg-query"];
    let lacking: Vec<_> = programs
        .into_iter()
        .filter(|program| !succeeds(program, &["--version"]))
        .collect();
    let certificates = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if !lacking.is_empty() {
        left_out(&format!("needs {}", lacking.join(", ")));
    } else if !succeeds("dpkg-query", &["--status", "libc6"]) || !certificates.exists() {
        left_out("needs Debian with ca-certificates, whose files the image holds");
    } else if !is_root() {
        left_out("needs root, to build an image without a user namespace");
    } else {
        return true;
    }
    false
}

fn is_root() -> bool {
    let own = std::fs::metadata("/proc/self").expect("Linux shows each process");
    own.uid() == 0
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    std::process::Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A store of images of our own, with the image in it.
struct Store {
    directory: TempDir,
}

impl Store {
    async fn with_image() -> Self {
        let directory = tempfile::tempdir().expect("a directory of our own");
        let store = Self { directory };
        let context = store.path("context");
        std::fs::create_dir(&context).expect("the directory is ours");
        collect_root(&context.join("image")).await;
        let build_context = format!("build={}", context.display());
        let file = path("deploy/Dockerfile");
        let context = path("");
        store
            .podman(&[
                "build",
                "--isolation=chroot",
                "--build-context",
                &build_context,
                "--build-arg=STATUS_INDEXER_COMMIT=0123abc",
                "--build-arg=CREATED=2026-01-02T03:04:05Z",
                "--build-arg=SOURCE=https://example.com/status-indexer",
                "--tag",
                IMAGE,
                "--file",
                &file.to_string_lossy(),
                &context.to_string_lossy(),
            ])
            .await;
        store
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Podman on this store. Without systemd, and with a driver that needs nothing of the kernel.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(self.path("store"))
            .arg("--runroot")
            .arg(self.path("run"))
            .args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs"])
            .args(["--runtime=runc", "--events-backend=none"])
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn output(&self, args: &[&str]) -> Output {
        within(TIMEOUT, "podman ends", self.command(args).output())
            .await
            .expect("it was there a moment ago")
    }

    /// Runs Podman, which must succeed, and returns what it prints.
    async fn podman(&self, args: &[&str]) -> String {
        let output = self.output(args).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podman {args:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The arguments that run the image as the manifests do: without privileges, and read-only.
    fn run<'a>(name: &'a str, options: &[&'a str], args: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec![
            "run",
            "--rm",
            "--name",
            name,
            "--read-only",
            "--read-only-tmpfs=false",
        ];
        all.extend(["--cap-drop=all", "--security-opt=no-new-privileges"]);
        // To reach the server of the tests, which listens on the loopback interface.
        all.push("--network=host");
        // Podman raises them by default, which not every root may do.
        all.extend(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        all.extend(options);
        all.push(IMAGE);
        all.extend(args);
        all
    }

    /// What Podman knows about the image.
    async fn inspected(&self) -> Value {
        let text = self.podman(&["image", "inspect", IMAGE]).await;
        let all: Value = serde_json::from_str(&text).expect("podman prints JSON");
        all[0].clone()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The containers of a failed test, whose mounts would keep the directory.
        let remove = ["rm", "--all", "--force", "--time=0"];
        let _ = self.command(&remove).into_std().output();
    }
}

/// Runs the script of the image's build stage for the binary under test.
async fn collect_root(root: &Path) {
    let stripped = root.with_file_name("status-indexer");
    let binary = testkit::product::path();
    succeed(Command::new("strip").arg("-o").arg(&stripped).arg(binary)).await;
    let script = path("deploy/image-root.sh");
    succeed(Command::new(script).arg(&stripped).arg(root)).await;
}

async fn succeed(command: &mut Command) {
    let output = command.output().await.expect("it can be executed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
}

/// A daemon in a container.
struct Container {
    podman: Child,
    pid: u32,
    port: u16,
    log: PathBuf,
    watchdog: std::process::Child,
}

const NAME: &str = "indexer";

impl Container {
    async fn start(store: &Store, database: &Database) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let url = format!("--env=DATABASE_URL={}", database.url());
        let listen = format!("--metrics-listen=127.0.0.1:{port}");
        let args = ["run", "--migrate", "--http-listen=off", &listen];
        let log = store.path("log");
        let file = std::fs::File::create(&log).expect("the directory is ours");
        let podman = store
            .command(&Store::run(NAME, &[&url], &args))
            .stderr(file)
            .spawn()
            .expect("it was there a moment ago");
        let format = ["inspect", "--format={{.State.Pid}}", NAME];
        let mut pid = 0;
        eventually(TIMEOUT, "the container runs", async || {
            let output = store.output(&format).await;
            let text = String::from_utf8_lossy(&output.stdout);
            pid = text.trim().parse().unwrap_or(0);
            pid != 0
        })
        .await;
        let watchdog = watchdog(pid);
        Self {
            podman,
            pid,
            port,
            log,
            watchdog,
        }
    }

    /// The status code of a route of the daemon; none while it does not answer.
    async fn get(&self, route: &str) -> Option<u16> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build()
            .expect("a plain client needs nothing");
        let url = format!("http://127.0.0.1:{}{route}", self.port);
        Some(client.get(url).send().await.ok()?.status().as_u16())
    }

    /// A file of the kernel about the process.
    fn kernel(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid)).expect("the process runs")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.watchdog.kill().and_then(|()| self.watchdog.wait());
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("{log}");
        }
    }
}

#[tokio::test]
async fn the_image_runs_unprivileged_on_a_read_only_root_and_stops_at_sigterm() {
    if !can_run_images() {
        return;
    }
    let store = Store::with_image().await;
    let version = store
        .podman(&Store::run("version", &[], &["--version"]))
        .await;
    let expected = format!("status-indexer {}", env!("CARGO_PKG_VERSION"));
    assert!(version.starts_with(&expected), "{version}");

    let database = Database::fresh().await;
    let mut daemon = Container::start(&store, &database).await;
    for route in ["/healthz", "/readyz"] {
        eventually(TIMEOUT, route, async || {
            daemon.get(route).await == Some(200)
        })
        .await;
    }
    let status = daemon.kernel("status");
    let ids = [USER; 4].join("\t");
    for line in [
        &*format!("Uid:\t{ids}"),
        &*format!("Gid:\t{ids}"),
        "NoNewPrivs:\t1",
        "CapPrm:\t0000000000000000",
        "CapBnd:\t0000000000000000",
    ] {
        assert!(status.lines().any(|own| own == line), "{line}: {status}");
    }
    let mounts = daemon.kernel("mountinfo");
    let root = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[4] == "/")
        .expect("a process has a root");
    assert!(root[5].split(',').any(|option| option == "ro"), "{root:?}");

    store.podman(&["kill", "--signal=TERM", NAME]).await;
    let exit = within(TIMEOUT, "the container ends", daemon.podman.wait())
        .await
        .expect("it is our child");
    assert_eq!(exit.code(), Some(0));
}

#[tokio::test]
async fn the_image_resolves_names_by_the_hosts_file() {
    if !can_run_images() {
        return;
    }
    let store = Store::with_image().await;
    let host = "--add-host=database.test:127.0.0.9";
    let args = [
        "migrate",
        "status",
        "--db-host=database.test",
        "--db-port=1",
    ];
    let output = store.output(&Store::run("names", &[host], &args)).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("database.test (127.0.0.9):1"), "{error}");
    assert!(error.contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn the_image_is_small_and_labelled() {
    if !can_run_images() {
        return;
    }
    let store = Store::with_image().await;
    let image = store.inspected().await;
    let label = |name: &str| {
        let key = format!("org.opencontainers.image.{name}");
        image["Config"]["Labels"][key].as_str().map(str::to_owned)
    };
    for (name, value) in [
        ("title", env!("CARGO_PKG_NAME")),
        ("licenses", "Apache-2.0"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", "0123abc"),
        ("created", "2026-01-02T03:04:05Z"),
        ("source", "https://example.com/status-indexer"),
    ] {
        assert_eq!(label(name).as_deref(), Some(value), "{name}");
    }
    assert!(label("description").is_some());
    assert_eq!(image["Config"]["User"], format!("{USER}:{USER}"));

    // The binary under test is larger than a release: its size is subtracted.
    let binary = store
        .path("context/status-indexer")
        .metadata()
        .expect("it was made");
    let size = image["Size"].as_u64().expect("an image has a size");
    let base = size - binary.len();
    assert!(base < MAXIMUM_BASE_BYTES, "{base} bytes besides the binary");
    let release = path("target/release/status-indexer");
    if let Ok(release) = release.metadata() {
        assert!(
            base + release.len() < MAXIMUM_BYTES,
            "{}",
            base + release.len()
        );
    }
}
