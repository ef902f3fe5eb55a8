//! What must be true of the host before the daemon starts, and what `doctor` says about it.
//!
//! [`Facts::read`] looks, [`judge`] decides: the decision is a pure function, so every finding has
//! a test that needs no such host.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde::{Deserialize, Serialize};

use crate::workload::netlink;

/// Oldest kernel the programs are built for: ring buffer (5.8), coarse clock helper (5.11), and the
/// oldest long-term series that has both.
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// First kernel with TCX links; older ones get clsact filters.
pub const TCX_KERNEL: (u32, u32) = (6, 6);

/// Subject of the finding about a running daemon.
pub const SUBJECT_DAEMON: &str = "daemon";

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a limit the operator should know.
    Warn,
    /// The daemon cannot do its work.
    Fail,
}

/// One finding of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How serious.
    pub level: Level,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub cause: String,
    /// The way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Finding {
    /// Everything is as it should be.
    #[must_use]
    pub fn ok(subject: &str, cause: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            subject: subject.to_owned(),
            cause: cause.into(),
            hint: None,
        }
    }

    /// A limit, with the way out.
    #[must_use]
    pub fn warn(subject: &str, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            subject: subject.to_owned(),
            cause: cause.into(),
            hint: Some(hint.into()),
        }
    }

    /// A fault that stops the daemon, with the way out.
    #[must_use]
    pub fn fail(subject: &str, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(subject, cause, hint)
        }
    }
}

/// Where the daemon wants to live.
#[derive(Clone, Debug)]
pub struct Places {
    /// Directory for pins.
    pub bpffs: PathBuf,
    /// Directory of the state database.
    pub state_dir: PathBuf,
    /// API socket.
    pub socket: PathBuf,
    /// Docker API socket; `None` when containers are not wanted.
    pub docker_socket: Option<PathBuf>,
}

/// A file or directory as far as it could be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Usable.
    Usable,
    /// Not there.
    Missing,
    /// There, but the operation failed.
    Refused(String),
}

/// What the host looks like.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `uname -r`.
    pub kernel_release: String,
    /// The kernel's own types are readable.
    pub btf: bool,
    /// Effective capabilities, bit by number.
    pub capabilities: u64,
    /// The user namespace is the initial one.
    pub initial_user_namespace: bool,
    /// `net.core.bpf_jit_enable`, if readable.
    pub jit: Option<u32>,
    /// The pin directory, or the nearest directory above it that exists, is on a bpffs.
    pub bpffs: bool,
    /// Every bpffs mount of this mount namespace.
    pub bpffs_mounts: Vec<PathBuf>,
    /// The state directory can be written.
    pub state_dir: Access,
    /// The directory of the socket can be written.
    pub socket_dir: Access,
    /// A daemon answers on the socket.
    pub daemon_running: bool,
    /// The Docker socket accepts connections.
    pub docker: Option<Access>,
    /// Interfaces of kinds on which nothing can be enforced: name and kind.
    pub blind_links: Vec<(String, String)>,
    /// Bridged packets are given to iptables (`bridge-nf-call-iptables`).
    pub bridge_netfilter: bool,
}

impl Facts {
    /// Looks at the host. What cannot be read is reported as absent.
    #[must_use]
    pub fn read(places: &Places) -> Self {
        let trimmed = |path: &str| {
            std::fs::read_to_string(path)
                .ok()
                .map(|text| text.trim().to_owned())
        };
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let socket_dir = places.socket.parent().unwrap_or(Path::new("/"));
        Self {
            kernel_release: trimmed("/proc/sys/kernel/osrelease").unwrap_or_default(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            capabilities: trimmed("/proc/self/status")
                .map(|status| effective_capabilities(&status))
                .unwrap_or_default(),
            initial_user_namespace: trimmed("/proc/self/uid_map")
                .is_some_and(|map| is_initial_uid_map(&map)),
            jit: trimmed("/proc/sys/net/core/bpf_jit_enable").and_then(|text| text.parse().ok()),
            bpffs: statfs(existing_ancestor(&places.bpffs))
                .is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC),
            bpffs_mounts: bpffs_mounts(&mounts),
            state_dir: writable(&places.state_dir),
            socket_dir: writable(socket_dir),
            daemon_running: UnixStream::connect(&places.socket).is_ok(),
            docker: places.docker_socket.as_deref().map(connectable),
            blind_links: blind_links(),
            bridge_netfilter: trimmed("/proc/sys/net/bridge/bridge-nf-call-iptables").as_deref()
                == Some("1"),
        }
    }

    fn has(&self, capability: u32) -> bool {
        self.capabilities & (1 << capability) != 0
    }
}

/// Where a bpffs belongs; the daemon mounts one there if there is none at all.
const DEFAULT_BPFFS: &str = "/sys/fs/bpf";

/// Looks and judges.
#[must_use]
pub fn check(places: &Places) -> Vec<Finding> {
    judge(&Facts::read(places), places)
}

/// The findings for a host, in the order in which an operator would fix them.
#[must_use]
pub fn judge(facts: &Facts, places: &Places) -> Vec<Finding> {
    let mut findings = vec![kernel(facts), privileges(facts), btf(facts), jit(facts)];
    findings.push(bpffs(facts, places));
    findings.push(access(
        "state directory",
        &places.state_dir,
        &facts.state_dir,
        "--state-dir",
    ));
    findings.push(access(
        "socket",
        &places.socket,
        &facts.socket_dir,
        "--socket",
    ));
    if facts.daemon_running {
        findings.push(Finding::fail(
            SUBJECT_DAEMON,
            format!("another daemon answers on {}", places.socket.display()),
            "stop it first, or give this one its own --socket, --state-dir and --bpffs",
        ));
    }
    findings.push(docker(facts, places));
    findings.extend(facts.blind_links.iter().map(|(name, kind)| {
        Finding::warn(
            "blind spot",
            format!("{name} is a {kind} interface: its traffic does not pass a host-side veth"),
            "workloads behind it are neither seen nor protected; use veth (bridge) networking for them",
        )
    }));
    if facts.bridge_netfilter {
        findings.push(Finding::warn(
            "bridge netfilter",
            "net.bridge.bridge-nf-call-iptables is 1: iptables also filters traffic between \
             workloads of one bridge",
            "if traffic is missing although its verdict is `forwarded`, look at the FORWARD chain",
        ));
    }
    findings
}

/// The findings that stop the daemon.
#[must_use]
pub fn fatal(findings: &[Finding]) -> Vec<&Finding> {
    findings
        .iter()
        .filter(|finding| finding.level == Level::Fail)
        .collect()
}

fn kernel(facts: &Facts) -> Finding {
    let release = &facts.kernel_release;
    match kernel_version(release) {
        None => Finding::warn(
            "kernel",
            format!("the release `{release}` has no version number"),
            "nothing to do if loading succeeds",
        ),
        Some(version) if version < OLDEST_KERNEL => Finding::fail(
            "kernel",
            format!(
                "{release} is older than {}.{}",
                OLDEST_KERNEL.0, OLDEST_KERNEL.1
            ),
            "run a newer kernel; the BPF ring buffer and clock helpers are missing here",
        ),
        Some(version) if version < TCX_KERNEL => Finding::warn(
            "kernel",
            format!("{release} has no TCX: clsact filters are used"),
            "from 6.6 on programs are attached as links, which other tools cannot remove by accident",
        ),
        Some(_) => Finding::ok("kernel", format!("{release}, TCX links")),
    }
}

fn privileges(facts: &Facts) -> Finding {
    let mut missing = Vec::new();
    if !facts.has(CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    if !facts.has(CAP_SYS_ADMIN) {
        if !facts.has(CAP_BPF) {
            missing.push("CAP_BPF");
        }
        if !facts.has(CAP_PERFMON) {
            missing.push("CAP_PERFMON");
        }
    }
    if !missing.is_empty() {
        return Finding::fail(
            "privileges",
            format!("{} not effective", missing.join(", ")),
            "start as root, or with these capabilities in the initial user namespace",
        );
    }
    if !facts.initial_user_namespace {
        return Finding::fail(
            "privileges",
            "the capabilities hold in a user namespace only, BPF needs them in the initial one",
            "start outside of rootless containers and `unshare -U`",
        );
    }
    if !facts.has(CAP_SYS_ADMIN) {
        return Finding::warn(
            "privileges",
            "CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON, but not CAP_SYS_ADMIN",
            "entering the network namespaces of workloads needs CAP_SYS_ADMIN; give interfaces by name",
        );
    }
    Finding::ok("privileges", "CAP_NET_ADMIN, CAP_BPF, CAP_SYS_ADMIN")
}

fn btf(facts: &Facts) -> Finding {
    if facts.btf {
        Finding::ok("BTF", "/sys/kernel/btf/vmlinux")
    } else {
        Finding::warn(
            "BTF",
            "/sys/kernel/btf/vmlinux is missing",
            "not needed by these programs; other BPF tools may need a kernel with CONFIG_DEBUG_INFO_BTF",
        )
    }
}

fn jit(facts: &Facts) -> Finding {
    match facts.jit {
        Some(0) => Finding::warn(
            "JIT",
            "net.core.bpf_jit_enable is 0: programs are interpreted",
            "`sysctl net.core.bpf_jit_enable=1` makes them several times faster",
        ),
        Some(_) => Finding::ok("JIT", "on"),
        None => Finding::ok("JIT", "always on, or not readable"),
    }
}

fn bpffs(facts: &Facts, places: &Places) -> Finding {
    if !facts.bpffs && places.bpffs.starts_with(DEFAULT_BPFFS) && facts.bpffs_mounts.is_empty() {
        return Finding::ok(
            "bpffs",
            format!(
                "{}; the daemon mounts {DEFAULT_BPFFS} at start",
                places.bpffs.display()
            ),
        );
    }
    if facts.bpffs {
        return Finding::ok("bpffs", format!("{}", places.bpffs.display()));
    }
    let hint = match facts.bpffs_mounts.first() {
        Some(mount) => format!(
            "a bpffs is mounted at {}: use for example `--bpffs {}`",
            mount.display(),
            mount.join("portcullis").display()
        ),
        None => {
            "`mount -t bpf bpf /sys/fs/bpf` (in `ip netns exec` it must be mounted again)".into()
        }
    };
    Finding::fail(
        "bpffs",
        format!("{} is not on a bpffs", places.bpffs.display()),
        hint,
    )
}

fn access(subject: &str, path: &Path, access: &Access, flag: &str) -> Finding {
    match access {
        Access::Usable | Access::Missing => Finding::ok(subject, path.display().to_string()),
        Access::Refused(cause) => Finding::fail(
            subject,
            format!("{} cannot be written: {cause}", path.display()),
            format!("choose another place with {flag}, or change its permissions"),
        ),
    }
}

fn docker(facts: &Facts, places: &Places) -> Finding {
    let path = places
        .docker_socket
        .as_deref()
        .unwrap_or(Path::new(""))
        .display();
    match &facts.docker {
        None => Finding::ok("docker", "off"),
        Some(Access::Usable) => Finding::ok("docker", path.to_string()),
        Some(Access::Missing) => Finding::warn(
            "docker",
            format!("{path} does not exist: containers get no names and labels"),
            "start Docker, name another socket with `run --docker-socket` (podman: \
             /run/podman/podman.sock), or say `run --no-docker`",
        ),
        Some(Access::Refused(cause)) => Finding::warn(
            "docker",
            format!("{path} does not answer: {cause}"),
            "start Docker, or say `run --no-docker`",
        ),
    }
}

/// The first two numbers of a kernel release.
#[must_use]
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

fn is_initial_uid_map(map: &str) -> bool {
    let fields: Vec<&str> = map.split_whitespace().collect();
    fields == ["0", "0", "4294967295"]
}

fn bpffs_mounts(mounts: &str) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "bpf").then(|| PathBuf::from(point))
        })
        .collect()
}

fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
}

fn writable(directory: &Path) -> Access {
    let target = existing_ancestor(directory);
    match nix::unistd::access(target, nix::unistd::AccessFlags::W_OK) {
        Ok(()) if target == directory => Access::Usable,
        Ok(()) => Access::Missing,
        Err(error) => Access::Refused(format!("{}: {}", target.display(), error.desc())),
    }
}

fn connectable(socket: &Path) -> Access {
    match UnixStream::connect(socket) {
        Ok(_) => Access::Usable,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Access::Missing,
        Err(error) => Access::Refused(error.to_string()),
    }
}

/// Interfaces of the calling thread's namespace whose kind says that workloads behind them have no
/// host-side veth. Asked of the kernel: `/sys/class/net` shows the namespace sysfs was mounted in.
fn blind_links() -> Vec<(String, String)> {
    // Callers may be inside an async runtime, where no second one can be driven. A new thread is in
    // the namespace of the one that starts it.
    let asked = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(netlink::links_by_kind())
    });
    let links = match asked.join() {
        Ok(Ok(links)) => links,
        Ok(Err(error)) => {
            tracing::debug!(%error, "interfaces cannot be listed");
            return Vec::new();
        }
        Err(panic) => std::panic::resume_unwind(panic),
    };
    blind(links)
}

fn blind(links: Vec<(String, String)>) -> Vec<(String, String)> {
    const BLIND: [&str; 3] = ["macvlan", "ipvlan", "netkit"];
    let mut found: Vec<_> = links
        .into_iter()
        .filter(|(_, kind)| BLIND.contains(&kind.as_str()))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places {
            bpffs: "/sys/fs/bpf/portcullis".into(),
            state_dir: "/var/lib/portcullis".into(),
            socket: "/run/portcullis/api.sock".into(),
            docker_socket: Some("/var/run/docker.sock".into()),
        }
    }

    fn good() -> Facts {
        Facts {
            kernel_release: "6.12.1-amd64".into(),
            btf: true,
            capabilities: u64::MAX,
            initial_user_namespace: true,
            jit: Some(1),
            bpffs: true,
            bpffs_mounts: vec!["/sys/fs/bpf".into()],
            state_dir: Access::Usable,
            socket_dir: Access::Missing,
            daemon_running: false,
            docker: Some(Access::Usable),
            blind_links: vec![],
            bridge_netfilter: false,
        }
    }

    /// The findings a change of one fact adds to those of a good host.
    fn change(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let before = judge(&good(), &places());
        let mut facts = good();
        change(&mut facts);
        judge(&facts, &places())
            .into_iter()
            .filter(|finding| !before.contains(finding))
            .collect()
    }

    #[test]
    fn a_good_host_has_only_ok_findings() {
        let findings = judge(&good(), &places());
        assert!(findings.iter().all(|finding| finding.level == Level::Ok));
        assert!(fatal(&findings).is_empty());
    }

    #[test]
    fn each_fault_gives_one_finding_with_a_way_out() {
        type Case = (&'static str, Level, fn(&mut Facts));
        let cases: [Case; 14] = [
            ("kernel", Level::Fail, |f| {
                f.kernel_release = "5.10.0-30-amd64".into();
            }),
            ("kernel", Level::Warn, |f| {
                f.kernel_release = "6.1.0".into();
            }),
            ("kernel", Level::Warn, |f| f.kernel_release = "odd".into()),
            ("privileges", Level::Fail, |f| f.capabilities = 0),
            ("privileges", Level::Fail, |f| {
                f.initial_user_namespace = false;
            }),
            ("privileges", Level::Warn, |f| {
                f.capabilities = 1 << CAP_NET_ADMIN | 1 << CAP_BPF | 1 << CAP_PERFMON;
            }),
            ("BTF", Level::Warn, |f| f.btf = false),
            ("JIT", Level::Warn, |f| f.jit = Some(0)),
            ("bpffs", Level::Fail, |f| f.bpffs = false),
            ("state directory", Level::Fail, |f| {
                f.state_dir = Access::Refused("read-only file system".into());
            }),
            ("daemon", Level::Fail, |f| f.daemon_running = true),
            ("docker", Level::Warn, |f| f.docker = Some(Access::Missing)),
            ("blind spot", Level::Warn, |f| {
                f.blind_links.push(("mv0".into(), "macvlan".into()));
            }),
            ("bridge netfilter", Level::Warn, |f| {
                f.bridge_netfilter = true;
            }),
        ];
        for (subject, level, mutate) in cases {
            let findings = change(mutate);
            assert_eq!(findings.len(), 1, "{subject}: {findings:?}");
            assert_eq!(findings[0].subject, subject);
            assert_eq!(findings[0].level, level, "{findings:?}");
            assert!(
                findings[0]
                    .hint
                    .as_ref()
                    .is_some_and(|hint| !hint.is_empty()),
                "{subject} has no way out"
            );
        }
    }

    #[test]
    fn only_kinds_without_a_host_side_veth_are_blind() {
        let link = |name: &str, kind: &str| (name.to_owned(), kind.to_owned());
        let links = vec![
            link("nk0", "netkit"),
            link("br0", "bridge"),
            link("v-web", "veth"),
            link("iv0", "ipvlan"),
        ];
        assert_eq!(
            blind(links),
            vec![link("iv0", "ipvlan"), link("nk0", "netkit")]
        );
    }

    #[test]
    fn missing_capabilities_are_named() {
        let findings = change(|facts| facts.capabilities = 1 << CAP_NET_ADMIN);
        assert_eq!(findings[0].cause, "CAP_BPF, CAP_PERFMON not effective");
    }

    #[test]
    fn texts_of_the_kernel_are_read() {
        assert_eq!(kernel_version("6.1.0-37-cloud-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(kernel_version("x"), None);
        assert_eq!(
            effective_capabilities("Uid:\t0\nCapEff:\t00000000000010ff\n"),
            0x10ff
        );
        assert_eq!(effective_capabilities(""), 0);
        assert!(is_initial_uid_map("         0          0 4294967295"));
        assert!(!is_initial_uid_map("         0       1000          1"));
        assert_eq!(
            bpffs_mounts("sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n"),
            vec![PathBuf::from("/sys/fs/bpf")]
        );
    }

    #[test]
    fn places_that_cannot_be_written_are_refused() {
        assert_eq!(writable(Path::new("/tmp")), Access::Usable);
        assert_eq!(
            writable(Path::new("/tmp/portcullis-not-there/x")),
            Access::Missing
        );
        assert_eq!(
            connectable(Path::new("/tmp/portcullis-no-such.sock")),
            Access::Missing
        );
    }
}
