//! The command line. Names and shapes are part of the public interface (docs of the commands are
//! generated from here).

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use policy::model::{Mode, Unselected};

/// Container microsegmentation firewall and flow visualizer on eBPF.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 ok, 1 error, 2 usage, 3 differences or denials found, 4 partly done.\n\
                        Data goes to standard output, logs and errors to standard error."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options every command understands.
    #[command(flatten)]
    pub global: Global,
}

/// Options every command understands.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Unix socket of the daemon.
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_SOCKET",
        default_value = "/run/portcullis/api.sock",
        value_name = "PATH"
    )]
    pub socket: PathBuf,
    /// Directory of what must survive a restart.
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_STATE_DIR",
        default_value = "/var/lib/portcullis",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,
    /// Directory on a bpffs for what is pinned.
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_BPFFS",
        default_value = "/sys/fs/bpf/portcullis",
        value_name = "DIR"
    )]
    pub bpffs: PathBuf,
    /// Log filter, e.g. `debug` or `warn,daemon::flow=trace`.
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,
    /// Log format.
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_LOG_FORMAT",
        value_enum,
        default_value_t = LogFormat::Text
    )]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Output format of data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// YAML.
    Yaml,
}

/// `-o` for commands with tabular data.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Output format.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in this network namespace.
    Run(RunArgs),
    /// Build a shop of services in namespaces of its own, run the whole story, clean up.
    Demo(DemoArgs),
    /// Check the host and the daemon: each finding with a way out.
    Doctor(Output),
    /// What is in force, and what needs attention.
    Status(Output),
    /// Workloads with addresses, identity and mode.
    Workloads(Output),
    /// Groups: the unit of modes and of learning.
    Groups(Output),
    /// The static inventory.
    #[command(subcommand)]
    Inventory(InventoryCommand),
    /// Modes of groups.
    #[command(subcommand)]
    Mode(ModeCommand),
    /// Policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Recorded flows, or with --follow flows as they happen.
    Flows(Box<FlowsArgs>),
    /// The service graph learned from flows.
    Graph(GraphArgs),
    /// Packet and event counters of the dataplane.
    Counters(Output),
    /// What was changed when and by whom, newest first.
    History {
        /// Number of lines.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Remove every program, link, map and pin from the kernel. Needs no daemon; nothing is
    /// enforced afterwards.
    Detach(DetachArgs),
}

/// `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Static inventory (YAML or JSON) to apply at start.
    #[arg(long, env = "PORTCULLIS_INVENTORY", value_name = "FILE")]
    pub inventory: Option<PathBuf>,
    /// Directory (or file) of policies to apply at start, all or nothing.
    #[arg(long, env = "PORTCULLIS_POLICIES", value_name = "DIR")]
    pub policies: Option<PathBuf>,
    /// Mode of groups that have none of their own [default: the stored one, else discover].
    #[arg(long, env = "PORTCULLIS_DEFAULT_MODE", value_parser = parse_mode, value_name = "MODE")]
    pub default_mode: Option<Mode>,
    /// What a workload in protect mode gets in a direction in which no policy selects it: `deny`
    /// is zero trust, `allow` the Kubernetes meaning [default: the stored one, else deny].
    #[arg(long, env = "PORTCULLIS_UNSELECTED", value_parser = parse_unselected, value_name = "allow|deny")]
    pub unselected: Option<Unselected>,
    /// Docker (or podman) API socket; it must answer [default: the usual places, if one is there].
    #[arg(
        long,
        env = "PORTCULLIS_DOCKER_SOCKET",
        value_name = "PATH",
        conflicts_with = "no_docker"
    )]
    pub docker_socket: Option<PathBuf>,
    /// Do not look for containers through the Docker API.
    #[arg(long, env = "PORTCULLIS_NO_DOCKER")]
    pub no_docker: bool,
    /// TCP address of the API. Not supported yet: the API is on the Unix socket only.
    #[arg(long, value_name = "ADDR", conflicts_with = "no_listen", hide = true)]
    pub listen: Option<String>,
    /// Serve the API on the Unix socket only (the default).
    #[arg(long)]
    pub no_listen: bool,
}

/// `demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Go on at the end until Ctrl-C, for a look with the other commands.
    #[arg(long)]
    pub keep: bool,
    /// Run the story on real Docker containers and networks.
    #[arg(long)]
    pub docker: bool,
    /// Write the generated policies and the graph to this directory.
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Output of the summary; other than `table`, the story goes to standard error.
    #[command(flatten)]
    pub output: Output,
}

/// `detach`.
#[derive(Clone, Debug, Args)]
pub struct DetachArgs {
    /// Detach even while a daemon is running (it would attach again at its next change).
    #[arg(long)]
    pub force: bool,
    /// Output.
    #[command(flatten)]
    pub output: Output,
}

/// `inventory`.
#[derive(Debug, Subcommand)]
pub enum InventoryCommand {
    /// Replace the static inventory; returns when it is in force in the kernel.
    Apply {
        /// File, or - for standard input.
        #[arg(short = 'f', long = "file", value_name = "FILE")]
        file: PathBuf,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Print the inventory in force as it was given.
    Show,
}

/// `mode`.
#[derive(Debug, Subcommand)]
pub enum ModeCommand {
    /// Modes in force.
    Get {
        /// Only this group.
        group: Option<String>,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Set the mode of a group, or of all.
    Set(ModeSetArgs),
    /// Keep a mode set with --confirm-within.
    Confirm(Output),
    /// Take back a mode set with --confirm-within.
    Revert(Output),
}

/// `mode set`.
#[derive(Clone, Debug, Args)]
pub struct ModeSetArgs {
    /// Group, as `groups` lists it. With --all it is left out.
    #[arg(required_unless_present = "all", value_name = "GROUP")]
    pub group: Option<String>,
    /// discover: everything passes, flows are learned. monitor: everything passes, what policy
    /// would deny is recorded. protect: policy decides.
    #[arg(value_parser = parse_mode, required_unless_present = "all")]
    pub mode: Option<Mode>,
    /// Every group, now and in the future: sets the default and clears the modes of single groups.
    #[arg(long)]
    pub all: bool,
    /// Take the change back after this time unless `mode confirm` comes first, e.g. `5m`.
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pub confirm_within: Option<std::time::Duration>,
    /// Output.
    #[command(flatten)]
    pub output: Output,
}

impl ModeSetArgs {
    /// The group (`None` for all) and the mode.
    ///
    /// # Errors
    /// A usage message: `--all` takes a mode only, and otherwise both are needed.
    pub fn target(&self) -> Result<(Option<String>, Mode), String> {
        match (self.all, &self.group, self.mode) {
            (false, Some(group), Some(mode)) => Ok((Some(group.clone()), mode)),
            // With --all the only positional argument is the mode.
            (true, Some(mode), None) => Ok((None, parse_mode(mode)?)),
            (true, None, Some(mode)) => Ok((None, mode)),
            (true, Some(_), Some(_)) => Err("give either a group or --all".to_owned()),
            _ => Err("give a mode: discover, monitor or protect".to_owned()),
        }
    }
}

/// Where policy documents come from.
#[derive(Clone, Debug, Args)]
pub struct Files {
    /// File, directory (every .yaml, .yml and .json below it) or - for standard input; repeatable.
    #[arg(
        short = 'f',
        long = "file",
        value_name = "FILE|DIR|-",
        required = true,
        num_args = 1
    )]
    pub files: Vec<PathBuf>,
}

/// `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Add or update policies, all or nothing; returns when in force.
    Apply {
        /// Documents.
        #[command(flatten)]
        files: Files,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Make these the only policies, all or nothing; returns when in force.
    Replace {
        /// Documents.
        #[command(flatten)]
        files: Files,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Delete policies by name or by the documents of a file, all or nothing.
    Delete {
        /// `namespace/name`, or a name in the namespace `default`.
        #[arg(required_unless_present = "files", value_name = "NAME")]
        names: Vec<String>,
        /// Documents whose policies to delete.
        #[arg(short = 'f', long = "file", value_name = "FILE|DIR|-")]
        files: Vec<PathBuf>,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Policies in force.
    List(Output),
    /// Print one policy as it was given.
    Show {
        /// `namespace/name`, or a name in the namespace `default`.
        name: String,
    },
    /// Check documents without applying them. Needs no daemon.
    Check {
        /// Documents.
        #[command(flatten)]
        files: Files,
        /// Output.
        #[command(flatten)]
        output: Output,
    },
    /// Say what policy decides about one flow, by which rule and on which line.
    Explain(ExplainArgs),
    /// Generate least-privilege policies from what was learned; applies nothing.
    Suggest {
        /// Only for this group.
        #[arg(long)]
        group: Option<String>,
        /// Also allow what the policies in force deny and only monitor mode let pass.
        #[arg(long)]
        include_audited: bool,
        /// `yaml` gives documents for `policy apply`; `table` the reasons, rule by rule.
        #[arg(short = 'o', long = "output", value_enum, default_value_t = SuggestFormat::Yaml)]
        output: SuggestFormat,
    },
    /// Print policies for another system.
    Export(ExportArgs),
}

/// `-o` of `policy suggest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SuggestFormat {
    /// Policy documents.
    Yaml,
    /// Documents and evidence as JSON.
    Json,
    /// Rules with their evidence, for people.
    Table,
}

/// `policy explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// Opener: `namespace/workload`, workload name, `host` or address.
    #[arg(long, value_name = "WORKLOAD|IP")]
    pub from: String,
    /// Responder: `namespace/workload`, workload name, `host` or address.
    #[arg(long, value_name = "WORKLOAD|IP")]
    pub to: String,
    /// Responder's port, e.g. `8080/tcp`, `53/udp`, `http` (a named port), `icmp`.
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    pub port: String,
    /// Judge as if every group were in protect mode.
    #[arg(long)]
    pub as_protect: bool,
    /// Output.
    #[command(flatten)]
    pub output: Output,
}

/// `policy export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// Target: `networkpolicy`. (`cilium`, `calico` and `native` are not supported yet.)
    #[arg(long, default_value = "networkpolicy")]
    pub format: String,
    /// Only policies that select workloads of this group.
    #[arg(long)]
    pub group: Option<String>,
    /// What `policy suggest` would generate instead of the policies in force.
    #[arg(long)]
    pub learned: bool,
}

/// `flows`. Several values of one filter are alternatives, several filters must all match.
#[derive(Clone, Debug, Default, Args)]
pub struct FlowsArgs {
    /// Go on printing flows as they happen.
    #[arg(long)]
    pub follow: bool,
    /// Only the newest N records; with --follow begin with them.
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// Not older than this: an age such as 15m, 2h, 7d, or a time.
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Older than this: an age or a time.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// forwarded, redirected, audit or dropped.
    #[arg(long)]
    pub verdict: Vec<String>,
    /// new, closed, denied or rejudged.
    #[arg(long)]
    pub event: Vec<String>,
    /// Source: `namespace/name`, name, group, address, host or world.
    #[arg(long, value_name = "PEER")]
    pub from: Vec<String>,
    /// Destination.
    #[arg(long, value_name = "PEER")]
    pub to: Vec<String>,
    /// Either end.
    #[arg(long, value_name = "PEER")]
    pub workload: Vec<String>,
    /// Either end's group.
    #[arg(long)]
    pub group: Vec<String>,
    /// Either end's namespace.
    #[arg(long)]
    pub namespace: Vec<String>,
    /// Either end's address or block.
    #[arg(long, value_name = "IP|CIDR")]
    pub ip: Vec<String>,
    /// Responder's port or range: 443, 8000-8080, 53/udp.
    #[arg(long)]
    pub port: Vec<String>,
    /// TCP, UDP, SCTP, ICMP, ICMPv6 or a number.
    #[arg(long)]
    pub protocol: Vec<String>,
    /// ingress, egress or unknown: whose policy judged.
    #[arg(long)]
    pub direction: Vec<String>,
    /// certain, inferred or unknown: how well it is known who opened the flow.
    #[arg(long)]
    pub opener: Vec<String>,
    /// Drop reason, e.g. `policy_default_deny`.
    #[arg(long, value_name = "REASON")]
    pub drop_reason: Vec<String>,
    /// Name of the deciding policy.
    #[arg(long)]
    pub policy: Vec<String>,
    /// Deciding rule: policy, policy:line or policy:ingress[0].
    #[arg(long)]
    pub rule: Vec<String>,
    /// true or false: the packet went from the responder to the opener.
    #[arg(long)]
    pub reply: Vec<String>,
    /// Leave out what matches, e.g. `--not port=53/udp`.
    #[arg(long, value_name = "FILTER=VALUE")]
    pub not: Vec<String>,
    /// Output format; `table` prints one line a flow.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

impl FlowsArgs {
    /// The filters as name and value.
    #[must_use]
    pub fn filters(&self) -> Vec<(&'static str, &str)> {
        let lists: [(&'static str, &[String]); 17] = [
            ("since", self.since.as_slice()),
            ("until", self.until.as_slice()),
            ("verdict", &self.verdict),
            ("event", &self.event),
            ("from", &self.from),
            ("to", &self.to),
            ("workload", &self.workload),
            ("group", &self.group),
            ("namespace", &self.namespace),
            ("ip", &self.ip),
            ("port", &self.port),
            ("protocol", &self.protocol),
            ("direction", &self.direction),
            ("opener", &self.opener),
            ("drop-reason", &self.drop_reason),
            ("policy", &self.policy),
            ("rule", &self.rule),
        ];
        let rest: [(&'static str, &[String]); 2] = [("reply", &self.reply), ("not", &self.not)];
        lists
            .into_iter()
            .chain(rest)
            .flat_map(|(name, values)| values.iter().map(move |value| (name, value.as_str())))
            .collect()
    }
}

/// `graph`.
#[derive(Clone, Copy, Debug, Args)]
pub struct GraphArgs {
    /// Output format.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = GraphFormat::Table)]
    pub format: GraphFormat,
}

/// Formats of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// For people.
    Table,
    /// Nodes and edges.
    Json,
    /// Graphviz.
    Dot,
    /// Mermaid flowchart.
    Mermaid,
    /// A picture.
    Svg,
}

impl GraphFormat {
    /// Name in the API's query.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
            Self::Dot => "dot",
            Self::Mermaid => "mermaid",
            Self::Svg => "svg",
        }
    }
}

/// Reads a mode name.
///
/// # Errors
/// A message that lists the modes.
pub fn parse_mode(text: &str) -> Result<Mode, String> {
    match text {
        "discover" => Ok(Mode::Discover),
        "monitor" => Ok(Mode::Monitor),
        "protect" => Ok(Mode::Protect),
        other => Err(format!(
            "`{other}` is no mode: use discover, monitor or protect"
        )),
    }
}

fn parse_unselected(text: &str) -> Result<Unselected, String> {
    match text {
        "allow" => Ok(Unselected::Allow),
        "deny" => Ok(Unselected::Deny),
        other => Err(format!("`{other}`: use allow or deny")),
    }
}

/// Reads a duration such as `90s`, `5m` or `1h 30m`.
///
/// # Errors
/// A message with an example.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("`{text}` is no duration: use for example 90s, 5m or 1h30m"))?;
    if span.is_zero() || span.is_negative() {
        return Err(format!("`{text}`: the duration must be greater than zero"));
    }
    Ok(span.unsigned_abs())
}
