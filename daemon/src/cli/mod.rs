//! The command line: a client of the daemon's socket, and the few commands that need no daemon.

pub mod args;
pub mod client;
pub mod error;
mod flows;
mod local;
mod mode;
pub mod output;
mod policy;
mod show;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, Global, InventoryCommand, LogFormat};
use client::Client;
use error::{CliError, exit};

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if let Err(error) = logging(&cli.global) {
        return error.report();
    }
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => error.report(),
    }
}

/// Help and version go to standard output and are no error.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done about a closed stream.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(exit::USAGE),
    }
}

fn logging(global: &Global) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(&global.log).map_err(|error| {
        CliError::usage(format!("--log `{}`: {error}", global.log))
            .hint("use for example `info`, `debug` or `warn,daemon::flow=trace`")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match global.log_format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).init();
        }
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn dispatch(cli: Cli) -> Result<ExitCode, CliError> {
    let Cli { command, global } = cli;
    match command {
        Command::Run(args) => return local::run(&global, args),
        Command::Demo(args) => return crate::demo::run(&args),
        Command::Detach(args) => return local::detach(&global, &args),
        Command::Policy(args::PolicyCommand::Check { files, output }) => {
            return policy::check(&files, output);
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(format!("cannot start the async runtime: {error}")))?;
    runtime.block_on(ask(command, &global))
}

/// Commands that ask the daemon.
async fn ask(command: Command, global: &Global) -> Result<ExitCode, CliError> {
    let client = Client::new(&global.socket);
    match command {
        Command::Run(_) | Command::Demo(_) | Command::Detach(_) => {
            unreachable!("dispatched without a daemon")
        }
        Command::Doctor(output) => return local::doctor(&client, global, output).await,
        Command::Status(output) => show::status(&client, output).await?,
        Command::Workloads(output) => show::workloads(&client, output).await?,
        Command::Groups(output) => show::groups(&client, output).await?,
        Command::Counters(output) => show::counters(&client, output).await?,
        Command::History { limit, output } => show::history(&client, limit, output).await?,
        Command::Graph(args) => show::graph(&client, args).await?,
        Command::Flows(args) => flows::flows(&client, &args).await?,
        Command::Mode(command) => return mode::mode(&client, command).await,
        Command::Policy(command) => return policy::policy(&client, command).await,
        Command::Inventory(InventoryCommand::Apply { file, output }) => {
            return show::inventory_apply(&client, &file, output).await;
        }
        Command::Inventory(InventoryCommand::Show) => show::inventory_show(&client).await?,
    }
    Ok(ExitCode::SUCCESS)
}
